"""Rows of core/benches/table.rs that the PyTorch implementations can run, one JSON object a line.

python torch_peers.py PEER ROW SECONDS   measures one row in this process; PEER is mambapy or transformers
python torch_peers.py PEER               lists the rows

Needs the packages torch, mambapy and transformers. The slow paths of transformers are what it runs on a CPU.
"""

import sys
import time

from measured import report, with_torch

FORWARD = {
    "forward 4x256 B1 L4096": (4, 256, 1, 4096),
    "train 4x256 B4 L1024": (4, 256, 4, 1024),
    "train 4x256 B1 L1024": (4, 256, 1, 1024),
    "train 1x64 B32 L200": (1, 64, 32, 200),
    "train 4x256 B1 L16384": (4, 256, 1, 16384),
}
# A training step of transformers takes minutes, and of the long row hours.
ROWS = {
    "mambapy": list(FORWARD),
    "transformers": ["forward 4x256 B1 L4096", "train 4x256 B1 L1024"],
}


def model(peer, layers, d):
    """A stack of Mamba-1 layers of d_state 16, expand 2, from (B, L, d) to (B, L, d)."""
    if peer == "mambapy":
        from mambapy.mamba import Mamba, MambaConfig

        return Mamba(MambaConfig(d_model=d, n_layers=layers)), lambda net, x: net(x)
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(vocab_size=8, hidden_size=d, num_hidden_layers=layers, use_cache=False)
    return MambaModel(config), lambda net, x: net(inputs_embeds=x).last_hidden_state


def main():
    peer, rest = sys.argv[1], sys.argv[2:]
    if not rest:
        print("\n".join(ROWS[peer]))
        return
    row, seconds = rest[0], float(rest[1])
    import torch

    layers, d, batch, length = FORWARD[row]
    torch.manual_seed(1)
    net, call = model(peer, layers, d)
    x = torch.randn(batch, length, d)
    if row.startswith("forward"):
        net.eval()

        def run():
            with torch.no_grad():
                call(net, x)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def run():
            optimizer.zero_grad()
            call(net, x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()

    started = time.perf_counter()
    run()
    # What takes longer than the time for all runs is measured once, cold.
    found = [batch * length / (time.perf_counter() - started)] if time.perf_counter() - started > seconds else []
    begun = time.perf_counter()
    while not found or (len(found) < 2 and time.perf_counter() - started < 3 * seconds) or (
        time.perf_counter() - begun < seconds and len(found) > 1
    ):
        at = time.perf_counter()
        run()
        found.append(batch * length / (time.perf_counter() - at))
    report(with_torch(peer), row, found)


main()
