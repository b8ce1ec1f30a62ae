#!/bin/bash
# modded-nanogpt's record 8 (2024-11-03), on FineWeb: Muon, rotary positions, ReLU², untied head
#
#   model      162 M parameters, 124 M of them in matrices that every token passes: 12 layers, 768 wide, T 1024
#   tokens     2.4 B: 4,578 steps of 524,288
#   FLOPs      2.05e18
#   published  8 × H100 80GB: 142 ms per step, 10.8 minutes, $5; val loss 3.28 (modded-nanogpt); one A100: 3 hours
#   estimate   8 × H100 80GB: 133 ms per step, 10.1 minutes, $4.7
#   measured   not yet by this project
#
#   bash scripts/speedrun.sh               all GPUs of this machine; flags are train_gpt2.py's
#   sbatch scripts/train.sbatch speedrun   under Slurm, with shards that are there
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export TORCHINDUCTOR_COORDINATE_DESCENT_TUNING="${TORCHINDUCTOR_COORDINATE_DESCENT_TUNING-1}"  # as published
"$python" fineweb.py --source pretokenized --max-shards 25 --out data/fineweb10B-gpt2
exec bash scripts/train.sh speedrun "$@"
