#!/bin/bash
# GPT-2 124M as llm.c trains it, on FineWeb
#
#   model      124 M parameters: 12 layers, 768 wide, T 1024
#   tokens     9.9 B: 18,865 steps of 524,288
#   FLOPs      8.45e18
#   published  8 × A100 80GB: 300 ms per step, 1.6 hours, $22; val loss 3.29, HellaSwag 29.9 % (llm.c)
#   estimate   8 × A100 80GB: 315 ms per step, 1.6 hours, $23
#   measured   not yet by this project
#
#   bash scripts/llmc-124m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch llmc-124m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source fineweb
exec bash scripts/train.sh llmc-124m "$@"
