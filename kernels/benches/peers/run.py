"""Our rows and those of the peers, one after the other on the same machine, as one table of ratios.

python run.py [--seconds S] [--only WORDS] [--peers NAMES] [--json FILE]

Needs Rust and Python; a peer that is not installed is named and left out. See README.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TABLE = ["cargo", "bench", "-p", "mamba-core", "--features", "train,cli,lm", "--bench", "table"]
MAMBA_RS = ["cargo", "run", "--quiet", "--release", "--manifest-path", str(HERE / "mamba-rs/Cargo.toml"), "--"]
PEERS = {
    "mamba-rs": MAMBA_RS,
    "mambapy": [sys.executable, str(HERE / "torch_peers.py"), "mambapy"],
    "transformers": [sys.executable, str(HERE / "torch_peers.py"), "transformers"],
    "llama.cpp": [sys.executable, str(HERE / "llama_cpp_peer.py")],
}


def lines(command):
    """What a command prints, or None if it fails; what it complains of is shown."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return done.stdout.strip().splitlines()


def table_command(profile):
    return TABLE + (["--profile", profile] if profile else []) + ["--"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="time for each row")
    parser.add_argument("--only", default="", help="rows whose name contains one of these words, separated by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers")
    parser.add_argument("--profile", default="", help="cargo profile of ours [default: bench]")
    parser.add_argument("--mamba-rs", help="the built program of the folder mamba-rs [default: cargo run]")
    parser.add_argument("--json", help="also write every measurement to this file, an object a line")
    args = parser.parse_args()
    if args.mamba_rs:
        PEERS["mamba-rs"] = [args.mamba_rs]
    words = [word for word in args.only.split(",") if word]
    wanted = lambda row: not words or any(word in row for word in words)

    rows, peers = [], {}
    for peer in args.peers.split(","):
        names = lines(PEERS[peer])
        for row in names or []:
            if wanted(row):
                peers.setdefault(row, []).append(peer)
    print("| work | ours, tokens/s | peer | tokens/s | ratio | peak memory, ours and the peer's |")
    print("|---|---|---|---|---|---|")
    for row, names in peers.items():
        # 16-bit prefill has no row of ours with the same weights: all weights of ours are f32 there.
        own = row.removesuffix(" f16") if row.startswith("prefill") else row
        command = table_command(args.profile) + ["--json", "--only", own, "--seconds", str(args.seconds)]
        ours = [json.loads(line) for line in lines(command) or [] if line.startswith("{")]
        ours = next((found for found in ours if found["row"] == own), None)
        if ours is None:
            continue
        rows.append(ours)
        for peer in names:
            said = lines(PEERS[peer] + [row, str(args.seconds)])
            if not said:
                continue
            theirs = json.loads(said[-1])
            rows.append(theirs)
            ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
            memory = [f"{r['peak_bytes'] / 2**20:.0f} MiB" if r.get("peak_bytes") else "unknown" for r in (ours, theirs)]
            print(
                f"| {row} | {ours['tokens_per_second']:,.0f} | {theirs['program']} | {theirs['tokens_per_second']:,.0f}"
                f" | {ratio:.2f} | {', '.join(memory)} |",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text("".join(json.dumps(row) + "\n" for row in rows))


os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
main()
