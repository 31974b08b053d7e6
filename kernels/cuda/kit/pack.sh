#!/usr/bin/env bash
# Packs everything that proves the CUDA build into one archive, for a GPU machine that has neither Rust nor this repository:
# test binaries, benches and programs with feature `cuda`, golden cases, prove.sh and peers.py.
#
#   eval "$(kernels/cuda/toolkit.sh ~/cuda-toolkit)"    compiler and libraries, where there is no CUDA
#   MAMBA_GOLDEN=golden kernels/cuda/kit/pack.sh kit.tar.gz
#   kernels/cuda/kit/pack.sh --peers kit.tar.gz         with a program of the crate mamba-rs, for peers.py
#   kernels/cuda/kit/pack.sh --cpu kit.tar.gz           without CUDA: to rehearse prove.sh
#
# The first build compiles candle's own kernels, about 12 minutes of one core. $MAMBA_GOLDEN names the golden cases; without
# it the small sets of the crates are packed.
set -euo pipefail
cd "$(dirname "$0")/../../.."

features=(--features mamba-kernels/cuda,mamba-core/cuda,mamba-genomics/cuda,mamba-recsys/cuda,mamba-speech/cuda,mamba-timeseries/cuda,mamba-motion/cuda)
peers=
case ${1-} in
  --cpu) features=() && shift ;;
  --peers) peers=1 && shift ;;
esac
if [ $# -ne 1 ]; then
  echo "usage: $0 [--cpu | --peers] ARCHIVE.tar.gz" >&2
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

# Copies what a build made and prove.sh runs, as bin/CRATE-TARGET, without its debugging information.
collect() {
  sed -nE 's|.*"manifest_path":"[^"]*/([a-z]+)/Cargo.toml".*"kind":\["'"$1"'"\].*"name":"([^"]+)".*"executable":"([^"]+)".*|\1 \2 \3|p' |
    while read -r crate target path; do
      case $crate-$target in kernels-properties | *-golden | *-gpu | *-mamba-*) ;; *) continue ;; esac
      strip -o "$kit/bin/$crate-$target" "$path"
      echo "$crate-$target"
    done
}

# Programs are built with the tests of their package.
echo "building tests, benches and programs" >&2
cargo test --no-run --message-format=json-render-diagnostics "${packages[@]}" "${features[@]}" \
  --test golden --test properties --bench gpu >"$kit/built.json"
for kind in test bench bin; do collect $kind <"$kit/built.json"; done
if [ -n "$peers" ]; then
  echo "building mamba-rs" >&2
  target=${CARGO_TARGET_DIR:-$PWD/target}/peers
  cargo build --release --ignore-rust-version --manifest-path kernels/benches/peers/mamba-rs/Cargo.toml \
    --features cuda --bin mamba-rs-gpu --target-dir "$target"
  strip -o "$kit/bin/mamba-rs-gpu" "$target/release/mamba-rs-gpu"
  echo mamba-rs-gpu
fi
rm "$kit/built.json"

if [ -n "${MAMBA_GOLDEN:-}" ]; then
  cp -rL "$MAMBA_GOLDEN/." "$kit/golden"
else
  for folder in */tests/golden; do cp -rL "$folder/." "$kit/golden"; done
fi
cp kernels/cuda/kit/prove.sh kernels/cuda/kit/peers.py "$kit/"
git rev-parse HEAD >"$kit/COMMIT" 2>/dev/null || echo unknown >"$kit/COMMIT"
tar -czf "$archive" -C "$kit" .
echo "$archive: $(du -h "$archive" | cut -f1); on the GPU machine: mkdir kit && tar -xzf $(basename "$archive") -C kit && kit/prove.sh" >&2
