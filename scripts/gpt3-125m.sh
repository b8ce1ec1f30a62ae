#!/bin/bash
# GPT-3 125M as llm.c trains it, T 2048, on FineWeb: three times over 100 B tokens
#
#   model      125 M parameters: 12 layers, 768 wide, T 2048
#   tokens     300.0 B: 572,204 steps of 524,288
#   FLOPs      2.90e20
#   published  150 ms per step, 24 hours (llm.c, which names 8 × A100 at $336; that would be 423 TFLOP/s per GPU, above
#              an A100's peak of 312, and fits 8 × H100 at $670)
#   estimate   8 × H100 80GB: 147 ms per step, 23 hours, $654
#              8 × A100 80GB: 342 ms per step, 54 hours, $762
#   measured   not yet by this project
#
#   bash scripts/gpt3-125m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch gpt3-125m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source fineweb --hf-name sample-100BT --out data/fineweb-100b
exec bash scripts/train.sh gpt3-125m "$@"
