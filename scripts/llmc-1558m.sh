#!/bin/bash
# GPT-2 1558M as llm.c trains it, on FineWeb-Edu
#
#   model      1,558 M parameters: 48 layers, 1600 wide, T 1024
#   tokens     33.6 B: 32,000 steps of 1,048,576
#   FLOPs      3.45e20
#   published  8 × H100 80GB: 2.8 s per step, 24 to 25 hours, $672 (llm.c)
#   estimate   8 × H100 80GB: 2.8 s per step, 25 hours, $704
#   measured   not yet by this project
#
#   bash scripts/llmc-1558m.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch llmc-1558m   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py --source fineweb-edu --hf-name sample-100BT --out data/fineweb-edu-100b
exec bash scripts/train.sh llmc-1558m "$@"
