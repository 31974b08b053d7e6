"""Our rows and those of the peers, one after the other on the same machine, as one table of ratios.

python run.py [--seconds S] [--only WORDS] [--peers NAMES] [--profile NAME] [--json FILE]

Needs Rust and Python; a peer that is not installed is named and left out. See README.md.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TABLE = ["-p", "mamba-core", "--features", "train,cli,lm", "--bench", "table"]
# Rows that benches of other crates measure: what their names begin with, the bench, and its group and function.
BENCHES = [
    ("score", ["-p", "mamba-recsys", "--bench", "ml1m"], "score/whole/ml1m_200"),
    ("forecast s-mamba", ["-p", "mamba-timeseries", "--bench", "forecasters"], "s-mamba/etth1_96/fwd"),
    ("train s-mamba", ["-p", "mamba-timeseries", "--bench", "forecasters"], "s-mamba/etth1_96/train_step"),
]
MAMBA_RS = ["cargo", "build", "--release", "--ignore-rust-version", "--manifest-path", str(HERE / "mamba-rs/Cargo.toml")]
PEERS = {
    "mamba-rs": None,  # the program that is built
    "mambapy": [sys.executable, str(HERE / "torch_peers.py"), "mambapy"],
    "transformers": [sys.executable, str(HERE / "torch_peers.py"), "transformers"],
    "llama.cpp": [sys.executable, str(HERE / "llama_cpp_peer.py")],
    "recbole": [sys.executable, str(HERE / "recbole_peer.py")],
    "s-mamba": [sys.executable, str(HERE / "s_mamba_peer.py")],
}


def lines(command):
    """What a command prints, or none if it fails; what it complains of is shown."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return []
    return done.stdout.strip().splitlines()


def built(command, kind):
    """The program of a kind, bin or bench, that a cargo command builds."""
    messages = map(json.loads, lines(command + ["--message-format", "json"]))
    programs = [m["executable"] for m in messages if m.get("executable") and kind in m["target"]["kind"]]
    return programs[-1] if programs else None


def bench(what, profile):
    return built(["cargo", "bench", "--no-run", *(["--profile", profile] if profile else []), *what], "bench")


def table_row(program, row, seconds):
    """A row in a process of its own."""
    said = lines([program, "--row", row, "--seconds", str(seconds)])
    if not said:
        return None
    measured = json.loads(said[-1])
    return {"program": "mamba-zoo", "row": row, "tokens_per_second": measured.pop("best"), **measured}


def bench_row(program, name):
    """Users or windows per second, of the samples that criterion keeps."""
    lines([program, "--bench", f"^{name}$"])
    kept = Path(program).parents[2] / "criterion"
    for path in kept.glob("**/new/benchmark.json"):
        about = json.loads(path.read_text())
        if about["full_id"] == name:
            break
    sample, items = json.loads(path.with_name("sample.json").read_text()), about["throughput"]["Elements"]
    rates = sorted(items * n / nanoseconds * 1e9 for n, nanoseconds in zip(sample["iters"], sample["times"]))
    return {"program": "mamba-zoo", "tokens_per_second": rates[-1], "median": rates[len(rates) // 2]}


def machine():
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = os.getloadavg()[0]
    return f"{len(os.sched_getaffinity(0))} cores of {cpus[0].split(': ')[1]}, load {load:.1f}, {datetime.date.today()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="time for each row")
    parser.add_argument("--only", default="", help="rows whose name contains one of these words, separated by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers")
    parser.add_argument("--profile", default="", help="cargo profile of ours [default: bench]")
    parser.add_argument("--mamba-rs", help="the built program of the folder mamba-rs [default: it is built]")
    parser.add_argument("--json", help="also append every measurement to this file, an object a line")
    args = parser.parse_args()
    words = [word for word in args.only.split(",") if word]
    os.chdir(ROOT)

    chosen = args.peers.split(",")
    if "mamba-rs" in chosen:
        PEERS["mamba-rs"] = [args.mamba_rs or built(MAMBA_RS, "bin") or "mamba-rs"]
    peers = {}
    for peer in chosen:
        for row in lines(PEERS[peer]):
            if not words or any(word in row for word in words):
                peers.setdefault(row, []).append(peer)
    in_bench = {row: found for row in peers for found in BENCHES if row.startswith(found[0])}
    table = bench(TABLE, args.profile) if len(in_bench) < len(peers) else None
    wanted = {name for _, _, name in in_bench.values()}
    benched = {name: bench_row(bench(what, args.profile), name) for _, what, name in BENCHES if name in wanted}

    print(machine())
    print("| work | ours | peer | its own | ratio | peak memory, ours and the peer's |\n|---|---|---|---|---|---|")
    for row, names in peers.items():
        # The prompt is a matter of products, which are in f32 whatever the weights are stored in.
        own = row.removesuffix(" f16") if row.startswith("prefill") else row
        ours = benched[in_bench[row][2]] if row in in_bench else table_row(table, own, args.seconds)
        for peer in names if ours else []:
            said = lines(PEERS[peer] + [row, str(args.seconds)])
            if not said:
                continue
            theirs = json.loads(said[-1])
            rates = [measured["tokens_per_second"] for measured in (ours, theirs)]
            memory = [measured.get("peak_bytes") for measured in (ours, theirs)]
            memory = ", ".join(f"{peak / 2**20:,.0f} MiB" if peak else "–" for peak in memory)
            ratio = f"{rates[0]:,.0f} | {theirs['program']} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f}"
            print(f"| {row} | {ratio} | {memory} |", flush=True)
            if args.json:
                with open(args.json, "a") as out:
                    out.write(json.dumps({"ours": ours, "theirs": theirs}) + "\n")


os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
main()
