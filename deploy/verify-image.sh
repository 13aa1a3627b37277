#!/usr/bin/env bash
# Builds both images without a Docker engine, runs them, draws an image with them, and says what
# they are. Needs root, buildah and debootstrap. From the environment:
#   BASE          an image to build on; unset: a Debian with Python, made by debootstrap
#   SUITE         the Debian of that (bookworm)
#   BUILD_FLAGS   more for `buildah bud`, such as --build-arg TORCH_INDEX=... or --volume ...
#   REDIS_SERVER  the server to use; unset: redis-server, valkey-server or the embedded one
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
processes=()
store=(--root "$work/storage" --runroot "$work/runroot" --storage-driver vfs)

clean_up() {
  local status=$?
  for pid in "${processes[@]}"; do
    kill -TERM -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if [ "$status" != 0 ]; then
    tail -n 30 "$work"/*.log >&2 || true
    echo "verify-image: FAILED" >&2
  fi
  buildah "${store[@]}" rm --all >/dev/null 2>&1 || true
  # What a container had mounted is not ours to remove.
  rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { echo "verify-image: $*"; }
refuse() { echo "verify-image: $*" >&2; exit 1; }
free_port() {
  python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

for tool in buildah python3 curl; do
  command -v "$tool" >/dev/null || refuse "$tool is missing: apt-get install $tool"
done

make_base() {
  command -v debootstrap >/dev/null || refuse "debootstrap is missing: apt-get install debootstrap"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    "${SUITE:-bookworm}" "$work/base" >"$work/debootstrap.log"
  # What Debian's own slim images leave out.
  rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/* \
    "$work"/base/usr/share/{doc,man,info,locale}/* "$work"/base/var/log/*
  local container
  container=$(buildah "${store[@]}" from scratch)
  buildah "${store[@]}" copy --quiet "$container" "$work/base" / >/dev/null
  buildah "${store[@]}" commit --quiet --rm "$container" localhost/koala-base >/dev/null
  rm -rf "$work/base"
}

build() {
  # shellcheck disable=SC2086 # several flags in one variable
  buildah "${store[@]}" bud --isolation chroot --format docker --target "$1" \
    --build-arg "BASE=$base" --build-arg "REVISION=$(git rev-parse HEAD)" ${BUILD_FLAGS:-} \
    --tag "localhost/koala-$1" . >"$work/build-$1.log" 2>&1
}

# What the image says of itself, by a path into its configuration such as User or Healthcheck.Test.
configured() {
  buildah "${store[@]}" inspect --type image "localhost/koala-$1" | python3 -c '
import functools, json, sys
config = json.load(sys.stdin)["Docker"]["config"]
found = functools.reduce(lambda part, name: part[name], sys.argv[1].split("."), config)
print(found if isinstance(found, str) else "\n".join(found))' "$2"
}

# Everything a container may write is mounted from outside, as with a read-only root file system.
volumes() {
  local folder
  for folder in data models tmp; do
    mkdir -p "$work/volumes/$folder"
    printf -- '--volume\n%s:/%s\n' "$work/volumes/$folder" "$folder"
  done
  chown -R 10001:10001 "$work/volumes"
}

run_in() {
  local name=$1 mounted
  shift
  mapfile -t mounted < <(volumes)
  buildah "${store[@]}" run --isolation chroot "${mounted[@]}" \
    --env "KOALA_REDIS_URL=redis://127.0.0.1:$redis_port/0" \
    --env KOALA_HOST=127.0.0.1 --env "KOALA_PORT=$gateway_port" \
    --env KOALA_METRICS_HOST=127.0.0.1 --env "KOALA_METRICS_PORT=$metrics_port" \
    "$name" -- "$@"
}

# A process group of its own, so that the clean-up ends all of it and nothing else.
start() {
  local name=$1
  shift
  set -m
  "$@" >"$work/$name.log" 2>&1 &
  processes+=("$!")
  set +m
}

wait_for() {
  local url=$1 pid
  for _ in $(seq 600); do
    curl --silent --fail --output /dev/null --noproxy '*' "$url" && return
    for pid in "${processes[@]}"; do
      kill -0 "$pid" 2>/dev/null || refuse "a process ended before $url answered"
    done
    sleep 0.2
  done
  refuse "$url does not answer"
}

check_user() {
  [ "$(configured "$1" User)" = 10001:10001 ] || refuse "$1: user $(configured "$1" User)"
  [ "$(run_in "$1" id -u)" = 10001 ] || refuse "$1: runs as $(run_in "$1" id -u)"
  say "$1: runs as user 10001"
}

check_licence() {
  run_in "$1" cat /app/LICENSE | cmp --silent - LICENSE || refuse "$1: no LICENSE"
  run_in "$1" cat /app/NOTICE | cmp --silent - NOTICE || refuse "$1: no NOTICE"
  say "$1: has LICENSE and NOTICE"
}

check_size() {
  local root bytes
  root=$(buildah "${store[@]}" mount "$1")
  bytes=$(du --bytes --summarize --one-file-system "$root" | cut -f1)
  say "$1: $((bytes / 1000000)) MB, $(($(du -sb "$root/opt/koala" | cut -f1) / 1000000)) MB of it packages"
}

check_health() {
  local command
  mapfile -t command < <(configured "$1" Healthcheck.Test)
  [ "${command[0]}" = CMD ] || refuse "$1: the health check is ${command[*]}"
  # The ports here are others than the image's.
  command=("${command[@]//:8000/:$gateway_port}")
  command=("${command[@]//:9101/:$metrics_port}")
  run_in "$1" "${command[@]:1}" || refuse "$1: the health check fails"
  say "$1: its health check passes (${command[*]:1})"
}

check_unwritten() {
  local root written
  root=$(buildah "${store[@]}" mount "$1")
  # What buildah itself brings in: the machine's names, the places of mounts.
  written=$(find "$root" -xdev -newer "$work/stamp" ! -type d ! -path "$root/etc/*" ! -path "$root/run/*" ! -path "$root/dev/*")
  [ -z "$written" ] || refuse "$1 wrote to its root file system: $written"
  say "$1: wrote nothing outside of its volumes"
}

base=${BASE:-localhost/koala-base}
[ -n "${BASE:-}" ] || make_base
say "base: $base"
for image in gateway worker; do
  build "$image"
  buildah "${store[@]}" from --pull-never --name "$image" "localhost/koala-$image" >/dev/null
done

redis_port=$(free_port) gateway_port=$(free_port) metrics_port=$(free_port)
server=${REDIS_SERVER:-$(command -v redis-server || command -v valkey-server ||
  .venv/bin/python -c 'from koala.embedded import binary; print(binary())')} ||
  refuse "there is no Redis server: apt-get install redis-server, or set REDIS_SERVER"
start redis "$server" --bind 127.0.0.1 --port "$redis_port" --save "" --dir "$work"
for image in gateway worker; do
  check_user "$image"
  check_licence "$image"
  check_size "$image"
done
if run_in gateway python -c 'import torch' 2>/dev/null; then
  refuse "gateway: has torch"
fi
say "gateway: has no torch"

touch "$work/stamp"
for image in gateway worker; do
  mapfile -t command < <(configured "$image" Cmd)
  start "$image" run_in "$image" "${command[@]}"
done
wait_for "http://127.0.0.1:$gateway_port/readyz"
check_health gateway
check_health worker
run_in gateway koala generate "a koala on a blue background" --seed 7 \
  --url "http://127.0.0.1:$gateway_port" --output /data/koala.png
python3 - "$work/volumes/data/koala.png" <<'PYTHON' || refuse "the image is no PNG of 64 x 64 px"
import struct, sys
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (64, 64)
PYTHON
say "drew an image of $(stat --format=%s "$work/volumes/data/koala.png") bytes"
check_unwritten gateway
check_unwritten worker
say "all is well"
