#!/bin/sh
# Repeats the trainings of the networks in the package that know Market-1501 (see RESULTS.md): ten parts of HAN Small,
# then five of HAN Large; about 15 hours on two cores. Started again, it goes on where it was stopped.
#
#   PYTHON=.venv/bin/python sh experiments/train_market1501.sh [DATA_DIR]
#
# The networks are runs/c160 and runs/o160; python -m han_tf.weights --run stores one as the package does.
set -eu
data=${1:-datasets/market1501}

# train RUN FLAGS...
train() {
  run=$1
  shift
  "${PYTHON:-python}" -m han_tf.train --dataset market1501 --data_dir "$data" \
    --recipe strong --weight_decay 5e-4 --run "runs/$run" "$@"
}

# store RUN: as the networks in the package, without classifiers.
store() {
  [ -e "runs/$1-stored" ] || "${PYTHON:-python}" -m han_tf.weights --run "runs/$1" --output "runs/$1-stored"
}

train m80 --input_height 80 --input_width 32 --epochs 20 --lr_drops ""
train m112 --input_height 112 --input_width 48 --init_from runs/m80 --init_classifiers --epochs 10 --lr_drops ""

erasing="--random_erasing --init_classifiers"
train e112 $erasing --seed 1 --input_height 112 --input_width 48 --init_from runs/m112 --epochs 14 --lr_drops ""
train e160 $erasing --seed 2 --init_from runs/e112 --epochs 5 --lr_drops ""
train f112 $erasing --seed 4 --input_height 112 --input_width 48 --init_from runs/e160 --epochs 10 --lr_drops ""

slow="$erasing --loss cross_entropy+triplet --lr 3e-3"
train t112 $slow --seed 6 --input_height 112 --input_width 48 --init_from runs/f112 --epochs 1 --lr_drops ""
train t160 $slow --seed 7 --init_from runs/t112 --epochs 7 --lr_drops 6/7
store t160

fast="$erasing --loss cross_entropy+triplet --lr 1e-2"
new="--noinit_classifiers --freeze_epochs 1"
train a112 $fast $new --seed 8 --input_height 112 --input_width 48 --init_from runs/t160-stored --epochs 20 --lr_drops "" \
  --eval_every 10
train b160 $fast --seed 9 --init_from runs/a112 --epochs 16 --lr_decay 3e-1 --lr_drops 6/16,12/16,15/16
train c160 $fast --seed 10 --init_from runs/b160 --epochs 31 --lr_decay 3e-1 --lr_drops 16/31,23/31,29/31

large="--arch han_large $fast --lr_decay 3e-1"
train l160 $large $new --seed 11 --init_from han_small-market1501 --epochs 14 --lr_drops 8/14,11/14,13/14
train m160 $large --seed 12 --init_from runs/l160 --epochs 21 --lr_drops 12/21,17/21,20/21
store m160

new="--noinit_classifiers --freeze_epochs 3"
train n160c $large $new --weight_decay 3e-3 --seed 13 --init_from runs/m160-stored --epochs 4 --lr 1e-1 --lr_drops 1/4,2/4,3/4
large="$large --precision mixed_bfloat16"
train n160 $large --weight_decay 3e-3 --seed 14 --init_from runs/n160c --epochs 13 --lr_drops ""
train o160 $large --weight_decay 2e-3 --seed 15 --init_from runs/n160 --epochs 32 --lr 5e-3 --lr_drops 12/32,22/32,29/32
