#!/bin/bash
# GPT-2 124M as Train GPT-2's script trains it, on FineWeb-Edu: a tenth of the lecture's run, at three times its rate
#
#   model      124 M parameters: 12 layers, 768 wide, T 1024
#   tokens     1.0 B: 2,000 steps of 524,288
#   FLOPs      8.96e17
#   published  8 × A100: 493 ms per step (Train GPT-2)
#   estimate   8 × A100 80GB: 317 ms per step, 10.6 minutes, $2.5
#   measured   not yet by this project
#
#   bash scripts/train-gpt-2.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch train-gpt-2   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py
exec bash scripts/train.sh train-gpt-2 "$@"
