#!/bin/bash
# gpt-oss's parts at GPT-2's size: experts, windows, sinks, groups of heads; on FineWeb-Edu
#
#   model      265 M parameters, of which a token uses 99 M in matrices: 12 layers, 768 wide, 2 of 8 experts, T 1024
#   tokens     10.0 B: 19,073 steps of 524,288
#   FLOPs      6.57e18
#   published  nothing of this size
#   estimate   8 × A100 80GB: 299 ms per step, 1.6 hours, $22; experts reach less
#   measured   not yet by this project
#
#   bash scripts/gpt-oss-mini.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch gpt-oss-mini   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
"$python" fineweb.py
exec bash scripts/train.sh gpt-oss-mini "$@"
