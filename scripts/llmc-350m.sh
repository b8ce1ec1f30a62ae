#!/bin/bash
# GPT-2 350M as llm.c trains it, on FineWeb
#
#   model      355 M parameters: 24 layers, 1024 wide, T 1024
#   tokens     31.5 B: 60,000 steps of 524,288
#   FLOPs      7.62e19
#   published  8 × A100 80GB: 820 ms per step, 14 hours, $190 (llm.c)
#   estimate   8 × A100 80GB: 857 ms per step, 14 hours, $200
#   measured   not yet by this project
#
#   bash scripts/llmc-350m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch llmc-350m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source fineweb --hf-name sample-100BT --out data/fineweb-100b
exec bash scripts/train.sh llmc-350m "$@"
