#!/bin/bash
# GPT-2 774M as llm.c trains it, on FineWeb: one and a half times over 100 B tokens
#
#   model      774 M parameters: 36 layers, 1280 wide, T 1024
#   tokens     150.0 B: 286,102 steps of 524,288
#   FLOPs      7.80e20
#   published  8 × A100 80GB: 1.7 s per step, 135 hours, $1,890 (llm.c)
#   estimate   8 × A100 80GB: 1,786 ms per step, 142 hours, $1,987
#   measured   not yet by this project
#
#   bash scripts/llmc-774m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch llmc-774m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source fineweb --hf-name sample-100BT --out data/fineweb-100b
exec bash scripts/train.sh llmc-774m "$@"
