#!/usr/bin/env python3
"""Other implementations at the shapes of ours, on one GPU, as a table of ratios: op by op the official CUDA and Triton kernels
(mamba_ssm, causal_conv1d), and whole models of four layers by the crate mamba-rs.

    peers.py list                          what is there to measure, and what can be imported here
    peers.py build SOURCE.tar.gz...        builds mamba-ssm and causal-conv1d for this GPU and its PyTorch
    peers.py run [--out FOLDER]            times ours, then theirs, and prints the table
    peers.py measure [--out FILE]          times theirs, one JSON object a line
    peers.py table OURS THEIRS             ratios of two such files; below 1 ours is faster

The sources are those of PyPI, fetched where there is a network and carried to the GPU machine:

    MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE pip download --no-deps --no-binary :all: \\
        --no-build-isolation mamba-ssm==2.3.2.post1 causal-conv1d==1.7.0

Building needs torch, packaging, ninja, setuptools, wheel and nvcc there; measuring needs torch, triton and einops. The program
of mamba-rs is bin/mamba-rs-gpu, which pack.sh --peers builds; it compiles its kernels when it runs, for which it needs NVRTC
and CUDA's headers, as PyTorch installs them. A peer that is missing is named and left out. Nothing of theirs is part of this
repository.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

KIT = Path(__file__).resolve().parent
# Ours, and the program of mamba-rs.
OURS = ["kernels-gpu", "core-gpu"]
MAMBA_RS = "mamba-rs-gpu"

# As in kernels/benches/gpu.rs; the models are in core/benches/gpu.rs.
SHAPES = {
    "caduceus_131k": dict(b=1, l=131072, d=512, n=16, h=0),
    "lm_130m_2k": dict(b=8, l=2048, d=1536, n=16, h=0),
    "ml1m_200": dict(b=256, l=200, d=128, n=32, h=0),
    "ssd_1.3b_8k": dict(b=1, l=8192, d=4096, n=128, h=64),
}
DTYPES = ["f32", "bf16"]
CONV_WIDTH = 4


def fail(message, hint=None):
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(1)


def environment():
    """This process's, with the libraries and headers of CUDA that PyTorch installed, where there are no others."""
    variables = dict(os.environ, MAMBA_TEST_DEVICE="cuda:0")
    found = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    if found:
        home = next(iter(found.submodule_search_locations))
        variables["LD_LIBRARY_PATH"] = ":".join([f"{home}/lib", *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        if not Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include/cuda_fp16.h").exists():
            variables["CUDA_HOME"] = home
    return variables


def program(name, arguments, lines):
    """Runs a program of the kit, whose JSON lines go to `lines`; says why if it does not succeed."""
    path = KIT / "bin" / name
    if not path.exists():
        print(f"left out: {name}: the kit has no bin/{name}", file=sys.stderr)
        return False
    done = subprocess.run([str(path), *arguments], env=environment(), stdout=subprocess.PIPE, text=True)
    print("".join(line for line in done.stdout.splitlines(True) if line.startswith("{")), end="", file=lines, flush=True)
    if done.returncode:
        print(f"left out: {name}: exit code {done.returncode}", file=sys.stderr)
    return done.returncode == 0


def kernels_of(module):
    """A module of mamba_ssm without the package's own imports, which ask for much that kernels do not need."""
    if "mamba_ssm" not in sys.modules:
        found = importlib.util.find_spec("mamba_ssm")
        if found is None:
            raise ImportError("mamba_ssm is not installed")
        for name in ["mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"]:
            package = types.ModuleType(name)
            package.__path__ = [str(Path(found.submodule_search_locations[0], *name.split(".")[1:]))]
            sys.modules[name] = package
    return importlib.import_module(module)


def selective_scan(torch, shape, dtype):
    fn = kernels_of("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    b, l, d, n = (shape[k] for k in "bldn")
    data = lambda *dims: torch.rand(*dims, device="cuda", dtype=dtype) * 2 - 1
    parameter = lambda *dims: torch.rand(*dims, device="cuda") * 2 - 1
    # u, delta, A, B, C, D, z, delta_bias
    x = [data(b, d, l), data(b, d, l), -torch.exp(3 * parameter(d, n)), data(b, n, l), data(b, n, l)]
    x += [parameter(d), data(b, d, l), parameter(d)]
    return x, lambda x: fn(*x, delta_softplus=True)


def ssd(torch, shape, dtype):
    fn = kernels_of("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    b, l, d, n, h = (shape[k] for k in "bldnh")
    data = lambda *dims: torch.rand(*dims, device="cuda", dtype=dtype) * 2 - 1
    parameter = lambda *dims: torch.rand(*dims, device="cuda") * 2 - 1
    # x, dt, A, B, C, D, dt_bias
    x = [data(b, l, h, d // h), data(b, l, h), -torch.exp(3 * parameter(h)), data(b, l, 1, n), data(b, l, 1, n)]
    x += [parameter(h), parameter(h)]
    return x, lambda x: fn(*x[:5], chunk_size=256, D=x[5], dt_bias=x[6], dt_softplus=True)


def causal_conv1d(torch, shape, dtype):
    fn = importlib.import_module("causal_conv1d").causal_conv1d_fn
    b, l, d = (shape[k] for k in "bld")
    data = lambda *dims: torch.rand(*dims, device="cuda", dtype=dtype) * 2 - 1
    x = [data(b, d, l), data(d, CONV_WIDTH), data(d)]
    return x, lambda x: fn(*x, activation="silu")


def rms_norm_residual(torch, shape, dtype):
    fn = kernels_of("mamba_ssm.ops.triton.layer_norm").rms_norm_fn
    b, l, d = (shape[k] for k in "bld")
    data = lambda *dims: torch.rand(*dims, device="cuda", dtype=dtype) * 2 - 1
    x = [data(b, l, d), data(d), data(b, l, d)]
    return x, lambda x: fn(x[0], x[1], None, residual=x[2], prenorm=True, eps=1e-5)[0]


def works():
    """What is measured: op, shape, what makes inputs and call."""
    for name, shape in SHAPES.items():
        scan = ("ssd", ssd) if shape["h"] else ("selective_scan", selective_scan)
        for op, make in [scan, ("causal_conv1d", causal_conv1d), ("rms_norm_residual", rms_norm_residual)]:
            yield op, name, shape, make


def seconds(torch, call):
    """Median seconds of a call: five runs of some calls, between events."""

    def timed(calls):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    for _ in range(3):  # compiles and tunes what is compiled at the first call
        call()
    calls = max(1, min(2000, int(0.05 / max(timed(2), 1e-7))))
    return sorted(timed(calls) for _ in range(5))[2]


def gpu_torch():
    """PyTorch, or none and why."""
    try:
        import torch
    except ImportError:
        return None, "there is no torch"
    return (torch, None) if torch.cuda.is_available() else (None, "PyTorch shows no GPU")


def measure(out):
    lines = out or sys.stdout
    has_models = program(MAMBA_RS, [], lines)
    torch, missing = gpu_torch()
    if missing:
        print(f"left out: mamba_ssm, causal_conv1d: {missing}", file=sys.stderr)
        if not has_models:
            fail("no peer was measured", "nvidia-smi lists GPUs; `peers.py list` needs none")
        return
    source = torch.zeros(1 << 28, device="cuda")
    copy = 2 * source.numel() * 4 / seconds(torch, source.clone)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(json.dumps({"program": "peers", "copy_bytes_per_second": copy, "machine": machine}), file=lines, flush=True)
    left_out = {}
    for op, name, shape, make in works():
        for dtype in DTYPES:
            try:
                x, call = make(torch, shape, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
                tracked = [t.detach().requires_grad_() for t in x]
                with torch.no_grad():
                    forward = seconds(torch, lambda: call(x))
                    gradient = torch.ones_like(call(x))
                # Gradients that are new each time: adding them to older ones would be work that ours have not.
                both = seconds(torch, lambda: torch.autograd.grad(call(tracked), tracked, gradient))
            except Exception as error:  # whatever others raise
                reason = f"{op}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                left_out.setdefault(reason, []).append(f"{name} {dtype}")
                continue
            for pass_, time in [("fwd", forward), ("fwd_bwd", both)]:
                row = {"program": "official", "op": op, "pass": pass_, "dtype": dtype, "shape": name, "seconds": time}
                print(json.dumps(row), file=lines, flush=True)
    for reason, rows in left_out.items():
        print(f"left out: {reason}: {', '.join(rows)}", file=sys.stderr)


# Their setup.py asks for nine architectures; nvcc shall compile one.
ONE_ARCHITECTURE = """#!/usr/bin/env bash
kept=()
while [ $# -gt 0 ]; do
  if [ "$1" = -gencode ]; then
    case $2 in *sm_{0}*) kept+=("$1" "$2") ;; esac
    shift
  else
    kept+=("$1")
  fi
  shift
done
exec {1} "${{kept[@]}}"
"""


def build(sources):
    missing = [source for source in sources if not Path(source).is_file()]
    if missing:
        fail(f"there is no file {missing[0]}", "`peers.py --help` tells how to fetch the sources")
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError as error:
        fail(f"there is no torch to build against: {error}")
    nvcc = Path(CUDA_HOME or "/usr/local/cuda", "bin/nvcc")
    if not nvcc.exists():
        fail(f"there is no nvcc: {nvcc}", "name the toolkit's folder in CUDA_HOME")
    if torch.version.cuda is None:
        fail(f"torch {torch.__version__} is not built for CUDA")
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    variables = dict(os.environ, MAMBA_FORCE_BUILD="TRUE", CAUSAL_CONV1D_FORCE_BUILD="TRUE")
    variables.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "nvcc")
        wrapper.write_text(ONE_ARCHITECTURE.format(f"{major}{minor}", nvcc))
        wrapper.chmod(0o755)
        variables["PYTORCH_NVCC"] = str(wrapper)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", *sources]
        sys.exit(subprocess.run(command, env=variables).returncode)


def read(path):
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.startswith("{")]
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    copy = next((row["copy_bytes_per_second"] for row in rows if "copy_bytes_per_second" in row), None)
    return copy, {tuple(row[k] for k in ("op", "pass", "dtype", "shape")): row for row in rows if "op" in row}


def table(ours, theirs):
    copy, ours = read(ours)
    _, theirs = read(theirs)
    if not ours:
        fail("the first file has no measurement of ours", "peers.py run, or bin/kernels-gpu --bench --json > ours.jsonl")
    if copy:
        print(f"copy: {copy / 1e9:.0f} GB/s read and written")
    print("| op | pass | type | shape | ours, ms | of copy | theirs, ms | ratio | theirs is |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key, row in ours.items():
        peer = theirs.get(key)
        of_copy = f"{100 * row['of_copy']:.0f} %" if "of_copy" in row else ""
        figures = [f"{1e3 * row['seconds']:.3f}", of_copy]
        if peer:
            ratio = f"{row['seconds'] / peer['seconds']:.2f}"
            figures += [f"{1e3 * peer['seconds']:.3f}", ratio, peer["program"]]
        else:
            figures += ["not run", "", ""]
        print(f"| {' | '.join([*key, *figures])} |")


def run(folder):
    """Ours and theirs in one run."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = folder / "ours.jsonl", folder / "theirs.jsonl"
    with ours.open("w") as lines:
        if not program(OURS[0], ["--bench", "--json"], lines):
            fail("ours were not measured", "the message is above")
        program(OURS[1], ["--bench", "--json"], lines)
    with theirs.open("w") as lines:
        measure(lines)
    table(ours, theirs)


def show():
    importable = {}
    for name in ["torch", "triton", "einops", "mamba_ssm", "selective_scan_cuda", "causal_conv1d"]:
        importable[name] = importlib.util.find_spec(name) is not None
    importable |= {f"bin/{name}": (KIT / "bin" / name).exists() for name in [*OURS, MAMBA_RS]}
    print("here:", ", ".join(f"{name} {'yes' if found else 'no'}" for name, found in importable.items()))
    for op, name, shape, _ in works():
        sizes = " ".join(f"{key.upper()} {value}" for key, value in shape.items() if value)
        print(f"{op:18} {name:14} {sizes}")
    for name, shape in SHAPES.items():
        print(f"{'4_layers':18} {name:14} of d_model {shape['d'] // 2}, {'Mamba-2' if shape['h'] else 'Mamba'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    builder = commands.add_parser("build")
    builder.add_argument("sources", nargs="+", metavar="SOURCE.tar.gz")
    runner = commands.add_parser("run")
    runner.add_argument("--out", default="peers", help="a folder for the measurements [default: peers]")
    measurer = commands.add_parser("measure")
    measurer.add_argument("--out", type=argparse.FileType("w"), help="a file for the JSON lines [default: stdout]")
    maker = commands.add_parser("table")
    maker.add_argument("ours")
    maker.add_argument("theirs")
    args = parser.parse_args()
    match args.command:
        case "list":
            show()
        case "build":
            build(args.sources)
        case "run":
            run(args.out)
        case "measure":
            measure(args.out)
        case "table":
            table(args.ours, args.theirs)


main()
