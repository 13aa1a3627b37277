#!/usr/bin/env bash
# What does this card do? Installs, downloads the model unless it is there, runs the stack under
# load, and prints each figure beside the published one and a verdict.
#
#   deploy/gpu-check.sh                                   koala-lightning-700m at 1024 px
#   deploy/gpu-check.sh --model koala-turbo-700m          another model, at its native size
#   deploy/gpu-check.sh --model koala-demo --size 64x64   without a card, to try the check itself
#
# Options: --model NAME, --size WIDTHxHEIGHT, --seconds N (of load for each number of clients),
# --threads N (of the worker's torch).
# HF_HOME and HF_TOKEN work as everywhere. Exit code 0: no line failed.
set -euo pipefail
cd "$(dirname "$0")/.."

model=koala-lightning-700m
arguments=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    --model) model="${2:?--model: a name is missing}" && shift 2 ;;
    --size | --seconds | --threads) : "${2:?$1: a value is missing}" && shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
    *) echo "gpu-check: what is $1? See --help." >&2 && exit 2 ;;
  esac
done

python="${VENV:-.venv}/bin/python"
if [ ! -x "$python" ]; then
  make "${VENV:-.venv}/.run"
fi
"$python" -m koala download "$model"
exec "$python" -m bench.gpu_check ${arguments[@]+"${arguments[@]}"}
