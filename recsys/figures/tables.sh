#!/bin/bash
# Mamba4KT on ASSISTments 2009; then Mamba4Rec and SASRec on MovieLens-100K, Amazon Beauty and Amazon Video Games, beside
# popularity and a Markov chain; three seeds each. Stopped at any instant, the same command goes on.
#
#   figures/tables.sh [PROGRAM] [FOLDER FOR THE RUNS]
set -eu
program=${1:-mamba-recsys}
runs=${2:-runs/tables}
mkdir -p "$runs"

# Trains in $1 unless it is finished.
train() {
    local out=$1
    shift
    if [ ! -e "$out/results.json" ]; then
        local resume=
        if [ -e "$out/optim.safetensors" ]; then resume=--resume; else rm -rf "$out"; fi
        "$program" "$@" --out "$out" $resume
    fi
}

# The setting that is a model's dropout.
dropout() {
    case $1 in
        sasrec) echo hidden_dropout_prob ;;
        *) echo dropout_prob ;;
    esac
}

for seed in 1 2 3; do
    train "$runs/assist2009-$seed" kt train --data assist2009/train1.csv --valid assist2009/valid1.csv \
        --test assist2009/test.csv --seed "$seed"
done
for seed in 1 2 3; do
    for model in mamba4rec sasrec; do
        # The same settings for both; dropout as in the papers.
        train "$runs/ml-100k-$model-$seed" train --data ml-100k --model "$model" --seed "$seed" \
            --learning-rate 1e-3 --batch 16 --epochs 60
        train "$runs/beauty-$model-$seed" train --data amazon-beauty --model "$model" --seed "$seed" --max-length 50 \
            --learning-rate 1e-3 --batch 128 --epochs 40 --set model."$(dropout "$model")"=0.4 --set train.patience=5
        train "$runs/video-$model-$seed" train --data amazon-video-games --model "$model" --seed "$seed" --max-length 50 \
            --learning-rate 1e-3 --batch 128 --epochs 40 --set model."$(dropout "$model")"=0.4 --set train.patience=5
    done
done
"$program" compare "$runs"/*
