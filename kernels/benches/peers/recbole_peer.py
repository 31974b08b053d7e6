"""Scoring by RecBole in the shape of recsys/benches/ml1m.rs, one JSON object a line.

python recbole_peer.py ROW SECONDS   measures one row in this process
python recbole_peer.py               lists the rows

Users with full histories of 200 items of 3,416, the 20 best of all items for each, by RecBole's own `full_sort_topk`.
Its SASRec has RecBole's default sizes. Mamba4Rec, which is published as a model for RecBole, needs a GPU's kernels; here it
is written as such a model with the mixer of mambapy, whose parallel scan runs on a CPU. Needs the packages recbole,
ray and mambapy.
"""

import logging
import os
import random
import sys
import tempfile

from measured import rates, report, with_torch

ITEMS, LENGTH, DIM, STATE, BEST = 3416, 200, 64, 32, 20
USERS = 128
ROWS = ["score ml1m_200 mamba4rec", "score ml1m_200 sasrec"]


def write_interactions(folder):
    """RecBole's atomic file: with the last two of each user held out, 200 are left to look back on."""
    rng = random.Random(1)
    os.makedirs(os.path.join(folder, "log"))
    with open(os.path.join(folder, "log", "log.inter"), "w") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for item in range(1, ITEMS + 1):  # every item is known
            out.write(f"0\t{item}\t{item}\n")
        for user in range(1, USERS + 1):
            for at in range(LENGTH + 2):
                out.write(f"{user}\t{rng.randint(1, ITEMS)}\t{at}\n")


def mamba4rec(config, dataset):
    import torch
    from mambapy.mamba import MambaBlock, MambaConfig
    from recbole.model.abstract_recommender import SequentialRecommender
    from torch import nn

    class Mamba4Rec(SequentialRecommender):
        """One layer of Liu and others 2024 (arXiv 2403.03900) without the residual, as their settings for ML-1M are."""

        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.items = nn.Embedding(self.n_items, DIM, padding_idx=0)
            self.mixer = MambaBlock(MambaConfig(d_model=DIM, n_layers=1, d_state=STATE, expand_factor=2))
            self.norms = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-12) for _ in range(3))
            self.feed_forward = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

        def forward(self, item_seq, item_seq_len):
            hidden = self.norms[1](self.mixer(self.norms[0](self.items(item_seq))))
            hidden = self.norms[2](self.feed_forward(hidden) + hidden)
            return self.gather_indexes(hidden, item_seq_len - 1)

        def full_sort_predict(self, interaction):
            hidden = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
            return torch.matmul(hidden, self.items.weight.t())

    return Mamba4Rec(config, dataset)


def main():
    if len(sys.argv) == 1:
        print("\n".join(ROWS))
        return
    row, seconds = sys.argv[1], float(sys.argv[2])
    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils.case_study import full_sort_topk

    logging.disable(logging.WARNING)
    sys.argv = sys.argv[:1]  # RecBole reads settings from it
    with tempfile.TemporaryDirectory() as folder:
        write_interactions(folder)
        settings = {
            "data_path": folder, "MAX_ITEM_LIST_LENGTH": LENGTH, "load_col": None, "use_gpu": False,
            "train_neg_sample_args": None, "eval_batch_size": 1 << 20,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        }
        config = Config(model="SASRec", dataset="log", config_dict=settings)
        dataset = create_dataset(config)
        test = data_preparation(config, dataset)[2]
    torch.manual_seed(1)
    model = (mamba4rec if row.endswith("mamba4rec") else SASRec)(config, test.dataset)
    model.eval()
    users = dataset.token2id("user_id", [str(user) for user in range(1, USERS + 1)])

    def run():
        with torch.no_grad():
            full_sort_topk(users, model, test, k=BEST, device="cpu")

    found = rates(USERS, run, seconds)
    name = f"RecBole {recbole.__version__}" + (", mixer of mambapy" if row.endswith("mamba4rec") else ", SASRec")
    report(with_torch(name), row, found)


main()
