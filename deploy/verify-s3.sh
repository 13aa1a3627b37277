#!/usr/bin/env bash
# Two workers that share nothing but Redis and an S3 server, each in a network namespace of its own:
# both draw, one loses its network in the middle, images are served and removed when they expire.
# Needs root, iproute2, curl, and .venv with the extras worker, embedded and test.
set -euo pipefail
cd "$(dirname "$0")/.."

bridge=koala-br host=10.77.0.1
work=$(mktemp -d)
processes=()

clean_up() {
  local status=$? i
  # What others need was started first and goes last.
  for ((i = ${#processes[@]} - 1; i >= 0; i--)); do
    kill -TERM "${processes[i]}" 2>/dev/null || true
    wait "${processes[i]}" 2>/dev/null || true
  done
  if [ "$status" != 0 ]; then
    tail -n 20 "$work"/*.log >&2 || true
    echo "verify-s3: FAILED" >&2
  fi
  for name in a b; do
    ip netns del "koala-$name" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { echo "verify-s3: $*"; }
refuse() { echo "verify-s3: $*" >&2; exit 1; }

start() {
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 &
  processes+=("$!")
}

wait_for() {
  for _ in $(seq 1200); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  refuse "it never came to be: $*"
}

# Jobs that a worker has ended well.
drawn_by() { grep -c '"status": "finished"' "$work/worker-$1.log" || true; }
drew_something() { [ "$(drawn_by "$1")" -gt 0 ]; }
generate() {
  curl --silent --fail --max-time 120 "http://127.0.0.1:8765/v1/images/generations" \
    --header 'Content-Type: application/json' --data "$1" | grep --only-matching 'http[^"]*png'
}
is_gone() { [ "$(curl --silent --output /dev/null --write-out '%{http_code}' "$1")" = 404 ]; }
objects() { curl --silent "http://$host:9000/koala?list-type=2" | grep --only-matching '<Key>' | wc -l; }
bucket_is_empty() { [ "$(objects)" = 0 ]; }

ip link add "$bridge" type bridge
ip address add "$host/24" dev "$bridge"
ip link set "$bridge" up
address=1
for name in a b; do
  address=$((address + 1))
  ip netns add "koala-$name"
  ip link add "koala-$name" type veth peer name eth0 netns "koala-$name"
  ip link set "koala-$name" master "$bridge" up
  ip -n "koala-$name" address add "10.77.0.$address/24" dev eth0
  ip -n "koala-$name" link set eth0 up
  ip -n "koala-$name" link set lo up
done

export AWS_ENDPOINT_URL_S3="http://$host:9000" AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
export KOALA_REDIS_URL="redis://:secret@$host:6399/0" KOALA_IMAGE_STORE=s3://koala/images
export KOALA_RESULT_TTL=120 KOALA_TORCH_THREADS=1 KOALA_MAX_BATCH_ROWS=4 KOALA_PORT=8765
valkey=$(.venv/bin/python -c 'from koala.embedded import binary; print(binary())')
start redis "$valkey" --bind "$host" --port 6399 --requirepass secret --save "" --dir "$work"
start s3 .venv/bin/python -m moto.server --host "$host" --port 9000
wait_for curl --silent --fail --request PUT "http://$host:9000/koala"
start gateway .venv/bin/python -m koala serve
for name in a b; do
  KOALA_DATA_DIR="$work/$name" start "worker-$name" \
    ip netns exec "koala-$name" .venv/bin/python -m koala work
  wait_for grep '"event": "ready"' "$work/worker-$name.log"
done
wait_for curl --silent --fail "http://127.0.0.1:$KOALA_PORT/readyz"
say "two workers are ready, in network namespaces of their own"

clients=()
for seed in 1 2 3 4 5 6 7 8; do
  generate "{\"prompt\": \"a koala\", \"n\": 2, \"seed\": $seed, \"num_inference_steps\": 20}" \
    >"$work/urls-$seed" &
  clients+=("$!")
done
wait "${clients[@]}"
mapfile -t urls < <(cat "$work"/urls-*)
[ "${#urls[@]}" = 16 ] || refuse "${#urls[@]} images instead of 16"
for name in a b; do
  drew_something "$name" || refuse "worker $name drew nothing"
done
for url in "${urls[@]}"; do
  curl --silent --fail --output "$work/image" "$url" || refuse "$url is not served"
  head --bytes 4 "$work/image" | grep --quiet PNG || refuse "$url is no image"
done
say "a drew $(drawn_by a) jobs, b $(drawn_by b); the gateway serves all 16 images from S3"

clients=()
for seed in 1 2 3 4; do
  generate "{\"prompt\": \"a cat\", \"seed\": $seed, \"num_inference_steps\": 150}" >"$work/cut-$seed" &
  clients+=("$!")
done
sleep 1
ip link set koala-a down
wait "${clients[@]}"
mapfile -t cut < <(cat "$work"/cut-*)
[ "${#cut[@]}" = 4 ] || refuse "${#cut[@]} images instead of 4"
ip link set koala-a up
say "worker a lost its network with jobs in flight; all 4 were drawn nevertheless"

for url in "${urls[@]}" "${cut[@]}"; do
  wait_for is_gone "$url"
done
wait_for bucket_is_empty
say "after KOALA_RESULT_TTL all images are gone from S3"
say "all is well"
