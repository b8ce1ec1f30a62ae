#!/bin/bash
# One machine, all its GPUs, started again until the run is complete.
#
#   bash scripts/train.sh                                   gpt2-124m
#   bash scripts/train.sh gpt2-124m --optim.lr 1e-3 --log.folder runs/hot
#
# gpt2-124m: 10 B tokens, 8.6e18 FLOPs. Published at 1.06 M tokens/s on 8 × A100: 2.6 hours, about $40 at $2 an
# A100-hour. Where it was run by this project: see the table in README.md.
#
# A run that dies is started again from its newest checkpoint; after a machine was taken away, start this script again,
# for example from cron's @reboot. The loop ends on the run's DONE marker, after a request to stop (SIGTERM, Ctrl-C), or
# when three attempts in a row save no further checkpoint: then something needs a person.
set -uo pipefail
cd "$(dirname "$0")/.."

folder=runs/gpt2-124m
words=("$@")
for ((i = 0; i < $#; i++)); do
    [[ ${words[i]} == --log.folder ]] && folder=${words[i + 1]}
    [[ ${words[i]} == --log.folder=* ]] && folder=${words[i]#*=}
done
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
torchrun=$(command -v torchrun || echo .venv/bin/torchrun)

newest() { find "$folder" -maxdepth 1 -name 'step_*' ! -name '*.tmp' 2>/dev/null | sort | tail -1; }
stop() { stopped=yes; kill -TERM "$child" 2>/dev/null; }
trap stop TERM INT

stopped=no
idle=0
until [[ -e $folder/DONE || $stopped == yes || $idle == 3 ]]; do
    before=$(newest)
    "$torchrun" --standalone --nproc_per_node="$((gpus > 0 ? gpus : 1))" train_gpt2.py "$@" &
    child=$!
    until wait "$child"; ! kill -0 "$child" 2>/dev/null; do :; done  # a signal interrupts wait
    if [[ $(newest) == "$before" ]]; then idle=$((idle + 1)); else idle=0; fi
    [[ -e $folder/DONE || $stopped == yes ]] || sleep "${PAUSE:-5}"
done
[[ -e $folder/DONE ]]
