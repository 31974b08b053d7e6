#!/bin/bash
# Mamba4Rec on MovieLens-1M. Stopped at any instant, the same command goes on.
#
#   figures/ml-1m.sh [PROGRAM] [FOLDER FOR THE RUNS]
set -eu
program=${1:-mamba-recsys}
out=${2:-runs}/ml-1m-d128
mkdir -p "$(dirname "$out")"
resume=
if [ -e "$out/optim.safetensors" ]; then resume=--resume; else rm -rf "$out"; fi
if [ ! -e "$out/results.json" ]; then
    "$program" train --data ml-1m --out "$out" --seed 1 --epochs 50 --batch 32 --learning-rate 2e-3 \
        --set model.hidden_size=128 --set model.num_layers=2 --set model.initialization=mamba \
        --set objective.context=100 --set train.min_lr_ratio=0.01 --set train.patience=null $resume
fi
"$program" eval --data ml-1m --checkpoint "$out" --valid --whole-history
"$program" eval --data ml-1m --checkpoint "$out" --whole-history
