"""S-Mamba by PyTorch in the shape of timeseries/benches/forecasters.rs, one JSON object a line.

python s_mamba_peer.py ROW SECONDS   measures one row in this process
python s_mamba_peer.py               lists the rows

The published S-Mamba needs a GPU's kernels; here it is written anew (Wang and others 2024, arXiv 2403.11144) with the mixer of
mambapy, whose parallel scan runs on a CPU. Batches of 32 windows of 96 hours of seven variables and four calendar features,
the next 96 hours forecast; sizes as published for ETTh1. Needs the packages torch and mambapy.
"""

import sys

from measured import rates, report, with_torch

BATCH, LENGTH, HORIZON, VARIABLES, MARKS = 32, 96, 96, 7, 4
WIDTH, LAYERS, STATE, DROPOUT = 256, 2, 2, 0.1
ROWS = {"forecast s-mamba etth1_96": False, "train s-mamba etth1_96": True}


def model():
    import torch
    from mambapy.mamba import MambaBlock, MambaConfig
    from torch import nn

    def mixer():
        return MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1, d_state=STATE, expand_factor=1, d_conv=2))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.forth, self.back = mixer(), mixer()
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
            self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.drop = nn.Dropout(DROPOUT)

        def forward(self, x):
            x = self.norms[0](x + self.forth(x) + self.back(x.flip(1)).flip(1))
            hidden = self.drop(nn.functional.gelu(self.up(x)))
            return self.norms[1](x + self.drop(self.down(hidden)))

    class SMamba(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(LENGTH, WIDTH), nn.Linear(WIDTH, HORIZON)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

        def forward(self, values, marks):
            mean = values.mean(1, keepdim=True)
            deviation = (values.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            tokens = torch.cat([(values - mean) / deviation, marks], 2).transpose(1, 2)
            x = self.drop(self.embed(tokens))
            for layer in self.layers:
                x = layer(x)
            forecast = self.head(self.norm(x)).transpose(1, 2)[:, :, :VARIABLES]
            return forecast * deviation + mean

    return SMamba()


def main():
    if len(sys.argv) == 1:
        print("\n".join(ROWS))
        return
    row, seconds = sys.argv[1], float(sys.argv[2])
    import torch

    torch.manual_seed(1)
    net = model()
    values, marks = torch.randn(BATCH, LENGTH, VARIABLES), torch.randn(BATCH, LENGTH, MARKS)
    target = torch.randn(BATCH, HORIZON, VARIABLES)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net.train(ROWS[row])

    def run():
        if not ROWS[row]:
            with torch.no_grad():
                net(values, marks)
            return
        optimizer.zero_grad()
        (net(values, marks) - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    found = rates(BATCH, run, seconds)
    report(with_torch("mambapy"), row, found)


main()
