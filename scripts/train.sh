#!/bin/bash
# Any preset on all GPUs of this machine, started again until the run is complete.
#
#   bash scripts/train.sh                                                gpt2-124m
#   bash scripts/train.sh gpt2-124m --optim.lr 1e-3 --log.folder runs/hot
#   GPUS=4 bash scripts/train.sh llmc-350m                               on some of them
#   NODES=2 HEAD=node1 bash scripts/train.sh gpt2-124m --system.zero 1   this line on both machines, node1 one of them
#
# What a run takes, in hours and dollars, stands on top of its own script: gpt2-124m.sh and so on. Several machines must
# see the same repository, shards and run folder.
#
# A run that dies is started again from its newest checkpoint; after a machine was taken away, start this script again,
# for example from cron's @reboot. The loop ends on the run's DONE marker, after a request to stop (SIGTERM, Ctrl-C), or
# when three attempts in a row save no further checkpoint: then something needs a person. A mistake that the trainer
# names itself, with status 2, ends the loop at once.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

folder=$("$python" scripts/read_run.py "$@") || exit 2
[[ $folder ]] || exit 0  # --help
if [[ -e $folder/DONE ]]; then
    echo "$folder is complete; to train the run again, name another --log.folder"
    exit 0
fi
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
machines=(--standalone)
if [[ ${NODES:-1} -gt 1 ]]; then
    if [[ -z ${HEAD:-} ]]; then
        echo "error: NODES=$NODES needs the name of the machine that the others meet at; give HEAD=node1" >&2
        exit 2
    fi
    machines=(--nnodes="$NODES" --rdzv_backend=c10d --rdzv_id="$folder" --rdzv_endpoint="$HEAD:${PORT:-29500}")
fi

newest() { find "$folder" -maxdepth 1 -name 'step_*' ! -name '*.tmp' 2>/dev/null | sort | tail -1; }
stop() { stopped=yes; kill -TERM "$child" 2>/dev/null; }
trap stop TERM INT

stopped=no
idle=0
report=$(mktemp)  # what torchrun and its processes write to stderr
trap 'rm -f "$report"' EXIT
until [[ $stopped == yes || $idle == 3 ]]; do
    before=$(newest)
    "$torchrun" "${machines[@]}" --nproc_per_node="$((gpus > 0 ? gpus : 1))" train_gpt2.py "$@" \
        2> >(trap '' INT TERM; exec tee "$report" >&2) &
    child=$!
    until wait "$child"; ! kill -0 "$child" 2>/dev/null; do :; done  # a signal interrupts wait
    if [[ $(newest) == "$before" ]]; then idle=$((idle + 1)); else idle=0; fi
    [[ -e $folder/DONE || $stopped == yes ]] && break
    sleep "${PAUSE:-5}"
    # torchrun ends with 1 whatever happened; its report names the status of the process that failed
    grep -q 'exitcode  : 2 ' "$report" && exit 2
done
[[ -e $folder/DONE ]]
