#!/usr/bin/env bash
# Assembles a CUDA 13.0 toolkit from Python packages, on a machine without a GPU and without administrator rights.
#
#   eval "$(kernels/cuda/toolkit.sh FOLDER)"            compiler and libraries: builds the binaries (1.2 GB)
#   eval "$(kernels/cuda/toolkit.sh FOLDER compiler)"   the compiler alone: compiles the kernels (about 105 MB to fetch)
#
# FOLDER lies outside the repository; a second run with the same versions fetches nothing. Progress goes to stderr, the
# variables that builds need to stdout. Needs python3 with pip or venv, and gcc. x86-64 Linux.
set -euo pipefail

compiler=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85)
libraries=(nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35)

case $#:${2-} in
  1:) packages=("${compiler[@]}" "${libraries[@]}") ;;
  2:compiler) packages=("${compiler[@]}") ;;
  *) echo "usage: eval \"\$($0 FOLDER [compiler])\"" >&2; exit 2 ;;
esac
mkdir -p "$1"
folder=$(cd "$1" && pwd)
home=$folder/nvidia/cu13
stamp=$folder/.packages

fetch() {
  local python=python3
  if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$folder/venv" && python=$folder/venv/bin/python
  fi
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
    --no-compile --target "$folder" "${packages[@]}" >&2
}

# Packages hold versioned libraries in lib; linkers look for libNAME.so in lib64.
link_names() {
  ln -sfn lib "$home/lib64"
  local file
  for file in "$home"/lib/lib*.so.[0-9]*; do
    ln -sfn "$(basename "$file")" "${file%%.so.*}.so"
  done
}

# libcuda belongs to the driver. To link without one, a library with each function that cuda.h declares, which returns
# CUDA_ERROR_STUB_LIBRARY.
make_driver_stub() {
  local stubs=$home/lib/stubs internal
  mkdir -p "$stubs"
  {
    echo 'int cuGetErrorName(int e, const char **s) { *s = e == 34 ? "CUDA_ERROR_STUB_LIBRARY" : "CUDA_ERROR"; return 0; }'
    echo 'int cuGetErrorString(int e, const char **s) { (void)e; *s = "no NVIDIA driver: libcuda is a stub"; return 0; }'
    for internal in '' -D__CUDA_API_VERSION_INTERNAL; do
      # shellcheck disable=SC2086
      echo '#include <cuda.h>' | gcc -E -P $internal -I"$home/include" -
    done | grep -oE '\bcu[A-Z][A-Za-z0-9_]*[[:space:]]*\(' | tr -d '( \t' | sort -u |
      grep -vxE 'cuGetError(Name|String)' | sed 's/.*/int &(void) { return 34; }/'
  } >"$stubs/stub.c"
  gcc -w -O1 -fPIC -shared -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" "$stubs/stub.c"
  ln -sfn libcuda.so.1 "$stubs/libcuda.so"
}

if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
  echo "fetching CUDA 13.0 into $folder" >&2
  rm -rf "$folder/nvidia" "$folder"/nvidia_*.dist-info "$stamp"
  fetch
  link_names
  make_driver_stub
  "$home/bin/nvcc" --version >/dev/null
  echo "${packages[*]}" >"$stamp"
fi

# What cudarc and candle's own kernels are built for: 80 runs on A100 and all that came later, 90 on H100 and H200 alone. STUB
# is where a build finds a driver to link.
cat <<VARIABLES
export CUDA_HOME='$home' PATH='$home/bin':"\$PATH" CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}" CUDA_STUB_PATH='$home/lib64:$home/lib/stubs'
VARIABLES
