"""Many short runs of `train_gpt2.py`, one per core and with one thread each; the results of all in one small JSON.

A run whose result is in the file is not made again, so an interrupted experiment goes on where it stopped. Two runs
with one thread each get more done than one run with two. The times in their logs say nothing, because the runs disturb
each other; `pace` measures the time of a step alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gpt2.logs.reader import Log, read_log
from gpt2.system.machine import available_cores, processor_name

ROOT = Path(__file__).resolve().parent.parent
STORIES = "data/stories-2048"
QUIET = ("--eval.sample-every", "0", "--log.save-every", "0", "--log.overwrite", "--system.device", "cpu")

Words = Sequence[object]  # of a command line after `train_gpt2.py`


def make_stories() -> None:
    """Turn the stories into token shards, if they are not there."""
    if not (ROOT / STORIES).exists():
        words = [sys.executable, "fineweb.py", "--source", "stories", "--vocab-size", "2048", "--out", STORIES]
        subprocess.run(words, cwd=ROOT, check=True)


def run_all(results: Path, runs: Mapping[str, Words], summary: Any = None) -> dict[str, dict[str, Any]]:
    """Make the runs that `results` lacks; return all results by name.

    `summary` turns the log of a run into what is kept of it, and is `curve` if it is not given.
    """
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {"runs": {}}
    missing = {name: words for name, words in runs.items() if name not in kept["runs"]}
    threads = max(1, available_cores() // max(1, len(missing)))  # a single run takes all cores
    with ThreadPoolExecutor(available_cores()) as pool:
        waiting = {pool.submit(_train, words, threads): name for name, words in missing.items()}
        for done in as_completed(waiting):
            name = waiting[done]
            command = " ".join(map(str, ["train_gpt2.py", *missing[name]]))
            kept["runs"][name] = {"command": command, **(summary or curve)(done.result())}
            kept |= {"machine": f"{processor_name()}, {available_cores()} cores", "date": time.strftime("%Y-%m-%d")}
            write(results, kept)
            print(f"{sum(one in kept['runs'] for one in runs)} of {len(runs)}: {name}", flush=True)
    return {name: kept["runs"][name] for name in runs}


def write(path: Path, results: Any) -> None:
    """Write JSON beside the file, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, path)


def curve(log: Log) -> dict[str, Any]:
    """The validations of a run."""
    return {
        "step": [int(step) for step in log.val_step],
        "bits_per_byte": [round(float(bits), 4) for bits in log.bits_per_byte],
    }


def _train(words: Words, threads: int) -> Log:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_gpt2.py", *words, *QUIET, "--log.folder", f"{folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
        return read_log(f"{folder}/run")


def pace(runs: Mapping[str, Words], steps: int = 60, rounds: int = 3) -> dict[str, float]:
    """Milliseconds per step of each run with all cores: medians of short runs, made in turn. Needs a quiet machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, words in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                short = ["--schedule.steps", steps, "--eval.every", 0, "--log.folder", f"{folder}/run"]
                command = [sys.executable, "train_gpt2.py", *words, *QUIET, *short]
                subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                times[name].append(statistics.median(read_log(f"{folder}/run").dt[steps // 3 :].tolist()))
    return {name: round(statistics.median(found), 2) for name, found in times.items()}
