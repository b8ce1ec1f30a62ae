#!/bin/bash
# GPT-2 124M, the lecture's run, on FineWeb-Edu
#
#   model      124 M parameters: 12 layers, 768 wide, T 1024
#   tokens     10.0 B: 19,073 steps of 524,288
#   FLOPs      8.55e18
#   published  8 × A100: 493 ms per step, 2.6 hours, $37 (Train GPT-2; OpenAI's GPT-2: val loss 3.29)
#   estimate   8 × A100 80GB: 317 ms per step, 1.7 hours, $24
#   measured   not yet by this project
#
#   bash scripts/gpt2-124m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch gpt2-124m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py
exec bash scripts/train.sh gpt2-124m "$@"
