#!/usr/bin/env bash
# Runs everything that pack.sh packed on this machine, within eight minutes, and prints one table. Needs NVIDIA's driver and
# CUDA 13's libraries cudart, cublas and curand; a machine with PyTorch has them, else name their folder in
# LD_LIBRARY_PATH. Without a GPU the table says why, and that nothing was run.
#
#   prove.sh            on cuda:0
#   prove.sh cpu        a rehearsal without a GPU, of a kit that was packed with --cpu
#   SECONDS_LEFT=1500 prove.sh      more time; what does not fit in is listed as not run
#
# Exit code: 0 if every row holds, 1 if a row failed or was not run.
set -uo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
device=${1:-cuda:0}
SECONDS=0
budget=${SECONDS_LEFT:-470}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export MAMBA_GOLDEN=$kit/golden MAMBA_TEST_DEVICE=$device RUST_BACKTRACE=0
rows=() failed=0 unusable=

# What PyTorch installed, for a machine without CUDA of its own; never a stand-in driver.
if [ "$device" != cpu ]; then
  libraries=$(python3 -c 'import nvidia.cu13 as p; print(list(p.__path__)[0] + "/lib")' 2>/dev/null)
  if [ -d "$libraries" ]; then export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"; fi
fi

row() { rows+=("$(printf '%-44s %-8s %6s  %s' "$1" "$2" "$3" "$4")"); }

# left MOST: seconds that a step may take, 0 if there are none.
left() {
  local rest=$((budget - SECONDS))
  if [ "$rest" -lt 5 ]; then echo 0; elif [ "$rest" -lt "$1" ]; then echo "$rest"; else echo "$1"; fi
}

# Why a command failed, from its output: what it panicked for, or the first line that speaks of an error.
reason() {
  local said
  said=$(awk '/panicked at/ { getline; print; exit }' "$1")
  if [ -z "$said" ]; then said=$(grep -aE 'error|Error|failed' "$1" | head -n 1); fi
  cut -c1-150 <<<"$said"
}

# step NAME MOST_SECONDS COMMAND…: runs it, with its output in $log; false if it did not succeed. Adds a row if it failed, or
# was not run because the device is unusable.
step() {
  local name=$1 most=$2 begin=$SECONDS code
  shift 2
  if [ -n "$unusable" ]; then
    row "$name" "NOT RUN" - "$unusable"
    failed=1
    return 1
  fi
  log=$work/$(echo "$name" | tr -c 'a-z0-9\n' _).log
  most=$(left "$most")
  if [ "$most" = 0 ]; then
    row "$name" "NOT RUN" - "no time left"
    failed=1
    return 1
  fi
  timeout "$most" "$@" >"$log" 2>&1
  code=$?
  took=$((SECONDS - begin))
  if [ $code = 0 ]; then return 0; fi
  local why
  why=$(reason "$log")
  if [ $code = 124 ]; then why="more than $most s"; fi
  row "$name" FAILED "${took}s" "${why:-exit code $code}"
  sed 's/^/    /' "$log" | tail -n 15 >&2
  failed=1
  return 1
}

# tests NAME MOST_SECONDS BINARY ARGUMENTS…: a test binary, whose count becomes the figure; it must have run something.
tests() {
  local name=$1 most=$2 binary=$kit/bin/$3 count
  shift 3
  if [ ! -x "$binary" ]; then
    row "$name" "NOT RUN" - "the kit has no $(basename "$binary")"
    failed=1
    return
  fi
  step "$name" "$most" "$binary" --test-threads 4 "$@" || return
  count=$(sed -nE 's/^test result: ok\. ([0-9]+) passed.*/\1/p' "$log" | head -n 1)
  if [ "${count:-0}" = 0 ]; then
    row "$name" FAILED "${took}s" "no test ran"
    failed=1
  else
    row "$name" ok "${took}s" "$count tests"
  fi
}

# The losses of a run by step, and the rate of its last record; of a run in stages, those of its first.
metrics() { find "$1" -name metrics.jsonl 2>/dev/null | sort | head -n 1 | xargs -r cat; }
losses() { metrics "$1" | sed -nE 's/.*"kind":"train","step":([0-9]+),"loss":([-0-9.eE+]+).*/\1 \2/p'; }
rate() { metrics "$1" | sed -nE 's/.*"kind":"train".*"rate":([0-9.eE+]+).*/\1/p' | tail -n 1; }
memory() { metrics "$1" | sed -nE 's/.*"kind":"train".*"peak_memory":([0-9]+).*/\1/p' | tail -n 1; }

# What makes a domain log every step.
every_step() {
  case $1 in
    genomics | recsys | speech) echo "--set train.log_every=1" ;;
    motion) echo "--set train_vae.log_every=1 --set train_evaluator.log_every=1 --set train_denoiser.log_every=1" ;;
  esac
}

# train DOMAIN DTYPE DEVICE: the bundled sample for some seconds, with one seed.
train() {
  local domain=$1 dtype=$2 on=$3 out=$work/$1-$2-$3
  # shellcheck disable=SC2046 # several words
  step "train $domain $dtype on $on" 60 "$kit/bin/$domain-mamba-$domain" train --quiet --out "$out" --seed 0 --minutes 0.12 \
    --device "$on" --dtype "$dtype" $(every_step "$domain") || return
  local first last
  first=$(losses "$out" | head -n 1 | cut -d' ' -f2)
  last=$(losses "$out" | tail -n 1 | cut -d' ' -f2)
  if [ -z "$first" ]; then
    row "train $domain $dtype on $on" FAILED "${took}s" "no loss was logged"
    failed=1
    return
  fi
  local most
  most=$(memory "$out")
  row "train $domain $dtype on $on" ok "${took}s" \
    "loss ${first:0:7} to ${last:0:7}, $(rate "$out" | cut -c1-9) items/s, $((${most:-0} >> 20)) MiB at most"
}

# agree DOMAIN: the largest difference of two runs' losses at steps that both have.
agree() {
  local here=$work/$1-f32-$device there=$work/$1-f32-cpu figure
  figure=$(join -j 1 <(losses "$here" | sort) <(losses "$there" | sort) |
    awk '{ d = ($2 - $3) / ($3 == 0 ? 1 : $3); if (d < 0) d = -d; if (d > most) most = d; n++ }
         END { if (n) printf "%d %.2e", n, most }')
  if [ -z "$figure" ]; then
    row "loss of $1, $device and cpu" "NOT RUN" - "${unusable:-no step in common}"
    failed=1
  elif awk -v x="${figure#* }" 'BEGIN { exit !(x < 2e-2) }'; then
    row "loss of $1, $device and cpu" ok - "at most ${figure#* } apart (relative) over ${figure%% *} records"
  else
    row "loss of $1, $device and cpu" FAILED - "${figure#* } apart (relative), expected at most 2e-2"
    failed=1
  fi
}

# Libraries that the kit's binaries need and this machine does not have.
missing_libraries() { ldd "$kit"/bin/* 2>/dev/null | sed -nE 's/^[[:space:]]*(lib[^ ]+) => not found.*/\1/p' | sort -u; }

if [ "$device" = cpu ]; then
  row machine ok - "$(uname -m), a rehearsal without a GPU"
else
  if ! command -v nvidia-smi >/dev/null; then
    row machine "NOT RUN" - "there is no nvidia-smi"
    failed=1
  elif step machine 30 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
    row machine ok - "$(head -n 1 "$log")"
  fi
  missing=$(missing_libraries | paste -sd ' ')
  if [ -n "$missing" ]; then
    row libraries FAILED - "not found: $missing"
    failed=1
    case $missing in
      *libcuda.so*) unusable="no NVIDIA driver is installed" ;;
      *) unusable="a library is missing" ;;
    esac
  elif step "$device opens" 60 "$kit/bin/kernels-gpu" --bench --dry; then
    row "$device opens" ok "${took}s" ""
  else
    unusable="$device does not open"
  fi
fi

# 1. ops against their references: f32, bf16 and f16, outputs and gradients, the same bits each time
tests "ops against references" 150 kernels-properties gpu::
# 2. memory and races of the same tests, beside what follows up to the benches; each launch once
checkers=()
if [ "$device" != cpu ]; then
  for tool in memcheck racecheck; do
    if [ -n "$unusable" ]; then
      row "compute-sanitizer $tool" "NOT RUN" - "$unusable"
      failed=1
    elif command -v compute-sanitizer >/dev/null; then
      MAMBA_TEST_ONCE=1 timeout "$(left 300)" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$kit/bin/kernels-properties" --test-threads 1 gpu:: >"$work/$tool.log" 2>&1 &
      checkers+=("$tool:$!:$SECONDS")
    else
      row "compute-sanitizer $tool" "NOT RUN" - "it is not on the PATH"
      failed=1
    fi
  done
fi
# 3. ops and every model against golden cases
for crate in kernels core genomics recsys speech timeseries motion; do
  tests "golden cases of $crate" 60 "$crate-golden"
done
# 4. training
for domain in genomics recsys speech timeseries motion; do
  train "$domain" f32 "$device"
  if [ "$device" != cpu ]; then
    train "$domain" bf16 "$device"
    train "$domain" f32 cpu
    agree "$domain"
  fi
done
# What the checkers found. One that is not done leaves 90 seconds for the benches.
for checker in "${checkers[@]}"; do
  IFS=: read -r tool process begin <<<"$checker"
  while kill -0 "$process" 2>/dev/null && [ $((SECONDS + 90)) -lt "$budget" ]; do sleep 1; done
  if kill "$process" 2>/dev/null; then
    row "compute-sanitizer $tool" "NOT RUN" "$((SECONDS - begin))s" "not done in time; SECONDS_LEFT gives it more"
    failed=1
    continue
  fi
  wait "$process"
  code=$?
  count=$(sed -nE 's/^test result: ok\. ([0-9]+) passed.*/\1/p' "$work/$tool.log" | head -n 1)
  if [ $code = 0 ] && [ "${count:-0}" != 0 ]; then
    summary=$(grep -aE 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/$tool.log" | tail -n 1 | sed 's/^=* *//' | cut -c1-60)
    row "compute-sanitizer $tool" ok "$((SECONDS - begin))s" "$count tests; $summary"
  else
    row "compute-sanitizer $tool" FAILED "$((SECONDS - begin))s" "exit code $code"
    grep -a '=========' "$work/$tool.log" | head -n 15 | sed 's/^/    /' >&2
    failed=1
  fi
done
# 5. speed: of ops, in time and in parts of the bandwidth of copies, and of whole models
dry=()
if [ "$device" = cpu ]; then dry=(--dry); fi
for bench in kernels-gpu core-gpu; do
  if [ ! -x "$kit/bin/$bench" ]; then
    row "bench $bench" "NOT RUN" - "the kit has no $bench"
    failed=1
  elif step "bench $bench" 90 "$kit/bin/$bench" --bench "${dry[@]}"; then
    while read -r name figures; do row "$name" ok - "$figures"; done <"$log"
  fi
done

echo
echo "commit $(cat "$kit/COMMIT"), device $device, $SECONDS s"
printf '%s\n' "${rows[@]}"
exit $failed
