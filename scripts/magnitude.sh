#!/bin/bash
# GPT-2 with EDM2's magnitude preservation in every part, on FineWeb-Edu
#
#   model      162 M parameters: 12 layers, 768 wide, T 1024
#   tokens     10.0 B: 19,073 steps of 524,288
#   FLOPs      8.55e18
#   published  nothing of this kind
#   estimate   8 × A100 80GB: 326 ms per step, 1.7 hours, $24
#   measured   not yet by this project
#
#   bash scripts/magnitude.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch magnitude   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py
exec bash scripts/train.sh magnitude "$@"
