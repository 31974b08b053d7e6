#!/usr/bin/env bash
# Packs everything that proves the CUDA build into one archive, for a GPU machine that has neither Rust nor this repository:
# test binaries, the bench and programs with feature `cuda`, golden cases, prove.sh and peers.py.
#
#   eval "$(kernels/cuda/toolkit.sh ~/cuda-toolkit)"    compiler and libraries, where there is no CUDA
#   MAMBA_GOLDEN=golden kernels/cuda/kit/pack.sh kit.tar.gz
#   kernels/cuda/kit/pack.sh --cpu kit.tar.gz           without CUDA: to rehearse prove.sh
#
# The first build compiles candle's own kernels, about 12 minutes of one core. $MAMBA_GOLDEN names the golden cases; without
# it the small sets of the crates are packed.
set -euo pipefail
cd "$(dirname "$0")/../../.."

features=(--features mamba-kernels/cuda,mamba-core/cuda,mamba-genomics/cuda,mamba-recsys/cuda,mamba-speech/cuda,mamba-timeseries/cuda,mamba-motion/cuda)
if [ "${1-}" = --cpu ]; then
  features=()
  shift
fi
if [ $# -ne 1 ]; then
  echo "usage: $0 [--cpu] ARCHIVE.tar.gz" >&2
  exit 2
fi
archive=$1
if [ ${#features[@]} -gt 0 ] && ! { command -v nvcc || [ -x "${NVCC:-}" ]; } >/dev/null; then
  echo "error: there is no nvcc" >&2
  echo "hint: eval \"\$(kernels/cuda/toolkit.sh ~/cuda-toolkit)\"" >&2
  exit 1
fi

packages=(-p mamba-kernels -p mamba-core -p mamba-genomics -p mamba-recsys -p mamba-speech -p mamba-timeseries -p mamba-motion)
kit=$(mktemp -d)
trap 'rm -rf "$kit"' EXIT
mkdir "$kit/bin" "$kit/golden"

# Copies what a build made, as bin/CRATE-TARGET, without its debugging information.
collect() {
  sed -nE 's|.*"manifest_path":"[^"]*/([a-z]+)/Cargo.toml".*"kind":\["'"$1"'"\].*"name":"([^"]+)".*"executable":"([^"]+)".*|\1 \2 \3|p' |
    while read -r crate target path; do
      strip -o "$kit/bin/$crate-$target" "$path"
      echo "$crate-$target"
    done
}

echo "building tests and benches" >&2
cargo test --no-run --message-format=json-render-diagnostics "${packages[@]}" "${features[@]}" \
  --test golden --test properties --bench gpu >"$kit/tests.json"
collect test <"$kit/tests.json"
collect bench <"$kit/tests.json"
echo "building programs" >&2
cargo build --message-format=json-render-diagnostics "${packages[@]}" "${features[@]}" --bins >"$kit/bins.json"
collect bin <"$kit/bins.json"
rm "$kit"/*.json

if [ -n "${MAMBA_GOLDEN:-}" ]; then
  cp -rL "$MAMBA_GOLDEN/." "$kit/golden"
else
  for folder in */tests/golden; do cp -rL "$folder/." "$kit/golden"; done
fi
cp kernels/cuda/kit/prove.sh kernels/cuda/kit/peers.py "$kit/"
git rev-parse HEAD >"$kit/COMMIT" 2>/dev/null || echo unknown >"$kit/COMMIT"
tar -czf "$archive" -C "$kit" .
echo "$archive: $(du -h "$archive" | cut -f1); on the GPU machine: mkdir kit && tar -xzf $(basename "$archive") -C kit && kit/prove.sh" >&2
