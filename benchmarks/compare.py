"""This trainer beside a peer's clone: same size, same text, same machine, both sides in turn, medians.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/compare.py --peer nanoGPT                        training speed and loss curves
    python benchmarks/compare.py --peer build-nanogpt                  the same, and tokenising
    python benchmarks/compare.py --peer nanoGPT --work train --rounds 5

Every measurement is a process of its own (compare_worker.py), so that no side inherits the other's memory or threads.
A step is batch, forward, backward, clipping, optimiser and the loss as a number; warm-up steps, in which compilation
happens, are not counted. The text is the source of the Python packages on this machine.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from peers import Peer, Size, write_tokens

from gpt2.data import sources
from gpt2.data.tokenizer import get_encoding
from gpt2.system.errors import UserError, run_command
from gpt2.system.machine import available_cores, processor_name

HERE = Path(__file__).resolve().parent
DOCUMENT = 4096  # characters
Job = dict[str, Any]
Setting = tuple[str, bool]  # precision, compiled
SETTINGS: list[Setting] = list(itertools.product(("fp32", "bf16"), (False, True)))


@dataclass(frozen=True)
class Options:
    """This trainer beside a peer's clone."""

    peer: Path
    """Clone of nanoGPT or build-nanogpt."""
    work: Literal["train", "loss", "tokenize", "all"] = "all"
    """train: tokens/s of a training step. loss: the same run on both sides. tokenize: text → shards (build-nanogpt)."""
    rounds: int = 3
    """Measurements of each side and setting; the median counts."""
    megabytes: float = 30.0
    """Text to tokenise, MB."""
    patience: int = 0
    """Repeat a measurement up to so many times while other processes take over a twentieth of the machine."""


@dataclass(frozen=True)
class Workload:
    """A model size, and how many steps of it are timed in one measurement."""

    name: str
    about: str
    size: Size
    warmup: int
    steps: int


WORKLOADS = [
    Workload("example", "nanoGPT's CPU example", Size(4, 4, 128, 65, 64, 12), warmup=10, steps=40),
    Workload("small", "6 layers, 384 wide", Size(6, 6, 384, 1024, 256, 16), warmup=2, steps=6),
]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a table is seen as it comes
    try:
        peer = Peer(options.peer)
    except FileNotFoundError as error:
        raise UserError(f"{error}; name one with --peer") from None
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} is too few; give at least 1")
    if options.work == "tokenize" and peer.is_nanogpt:
        raise UserError("--work tokenize compares with build-nanogpt's fineweb.py; name a clone of it with --peer")
    print(f"{processor_name()}, {available_cores()} cores, torch {torch.__version__}")
    for workload in WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            bench = Bench(peer, options.rounds, options.patience, Path(folder))
            if options.work in ("train", "loss", "all"):
                write_tokens(bench.folder, text_as_tokens(workload.size.vocab_size))
            if options.work in ("loss", "all") and workload.name == "example":
                compare_losses(workload, bench)
            if options.work in ("train", "all"):
                compare_training(workload, bench)
    if options.work in ("tokenize", "all") and not peer.is_nanogpt:
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            compare_tokenizing(Bench(peer, options.rounds, options.patience, Path(folder)), options.megabytes)


def text_as_tokens(vocab_size: int, characters: int = 4_000_000) -> np.ndarray:
    """The standard library's text as tokens (N,): GPT-2's at this size, or single characters where 257 are too many."""
    text = "".join(itertools.islice(documents(sources.stdlib().read(0)), characters // DOCUMENT))
    if vocab_size >= 257:
        return get_encoding(vocab_size).encode_to_numpy(text, disallowed_special=())
    common = [character for character, _ in Counter(text).most_common(vocab_size - 1)]
    number = {character: i for i, character in enumerate(common)}
    return np.array([number.get(character, vocab_size - 1) for character in text])


def documents(texts: Iterator[str]) -> Iterator[str]:
    """The texts cut into documents of 4,096 characters; the rest of each is left out."""
    for text in texts:
        for start in range(0, len(text) - DOCUMENT + 1, DOCUMENT):
            yield text[start : start + DOCUMENT]


@dataclass
class Bench:
    """Where and how often things are measured, and how much of the machine others took meanwhile."""

    peer: Peer
    rounds: int
    patience: int
    folder: Path

    def measure(self, **job: Any) -> Job:
        """Run one measurement in a process of its own, in `folder`; its result, with `wall`, the process's seconds,
        and `others`, the part of the machine's time that other processes took.

        RuntimeError with the end of its output where it fails.
        """
        environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(self.folder / "inductor"))
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
        command = [sys.executable, str(HERE / "compare_worker.py"), json.dumps({**job, "peer": str(self.peer.path)})]
        for _ in range(1 + self.patience):
            before, started = processor_time(), time.perf_counter()
            process = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
            wall = time.perf_counter() - started
            if process.returncode:
                raise RuntimeError(f"{job['side']}: {process.stderr.strip()[-600:]}")
            busy, whole, own = (after - earlier for after, earlier in zip(processor_time(), before, strict=True))
            others = max(0.0, busy - own) / whole if whole else 0.0
            if others <= 0.05:
                break
        return {**json.loads(process.stdout.splitlines()[-1]), "wall": wall, "others": others}


def processor_time() -> tuple[float, float, float]:
    """CPU seconds so far: of all processes, of all cores idle or not (both 0 but on Linux), and of our children."""
    stat, own = Path("/proc/stat"), os.times()
    ticks = [int(field) for field in stat.read_text().split()[1:9]] if stat.exists() else [0] * 8
    busy = sum(ticks) - ticks[3] - ticks[4]  # idle, waiting for a disk
    second = os.sysconf("SC_CLK_TCK") if stat.exists() else 1
    return busy / second, sum(ticks) / second, own.children_user + own.children_system


def disturbance(results: Iterable[Job]) -> str:
    """A line about the other processes of the machine."""
    shares = [result["others"] for result in results]
    return f"  other processes took {statistics.median(shares):.0%} of the machine (median), at most {max(shares):.0%}"


def compare_training(workload: Workload, bench: Bench) -> None:
    """Time training steps of both sides in turn, at every precision, compiled and not; print a table and the ratio."""
    size, name = workload.size, bench.peer.name
    print(
        f"\ntrain/{workload.name}: {workload.about}: {size}\n"
        f"  median of {bench.rounds} processes of {workload.steps} steps, after {workload.warmup} warm-up steps each"
    )
    found: dict[tuple[str, Setting], list[Job]] = {}
    for number, setting in itertools.product(range(bench.rounds), SETTINGS):
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            job = {"work": "train", "side": side, "size": dataclasses.asdict(size), "precision": setting[0]}
            job |= {"compiled": setting[1], "warmup": workload.warmup, "steps": workload.steps}
            try:
                found.setdefault((side, setting), []).append(bench.measure(**job))
            except RuntimeError as error:
                if side == "ours":
                    raise
                print(f"  {name} {label(setting)} does not run here: {error}")
    speed = {key: size.tokens / statistics.median(r["seconds"] for r in results) for key, results in found.items()}
    print(f"  {'tokens/s':16}{'ours':>12}{name:>16}{'ratio':>9}")
    for setting in SETTINGS:
        ours, theirs = speed["ours", setting], speed.get(("peer", setting))
        print(f"  {label(setting):16}{ours:12,.0f}", f"{theirs:15,.0f}{ours / theirs:9.2f}" if theirs else "-")
    print(disturbance(itertools.chain(*found.values())))
    (our_best, ours), (their_best, theirs) = (best(speed, side) for side in ("ours", "peer"))
    waiting = max(statistics.median(r["waiting"] for r in found["ours", setting]) for setting in SETTINGS)
    print(
        f"ratio train/{workload.name}: {ours / theirs:.2f} "
        f"(ours {ours:,.0f} tokens/s {label(our_best)}, {name} {theirs:,.0f} tokens/s {label(their_best)})\n"
        f"loader train/{workload.name}: next_step() takes at most {waiting:.2%} of a step's time"
    )


def best(speed: dict[tuple[str, Setting], float], wanted: str) -> tuple[Setting, float]:
    """The fastest setting of a side, and its tokens/s."""
    return max(((setting, s) for (side, setting), s in speed.items() if side == wanted), key=lambda pair: pair[1])


def label(setting: Setting) -> str:
    """`bf16 compiled`."""
    return f"{setting[0]} {'compiled' if setting[1] else 'eager'}"


def compare_losses(workload: Workload, bench: Bench, steps: int = 60) -> None:
    """Train both models from the same weights on the same batches in fp32; print how far their losses come apart."""
    result = bench.measure(work="loss", side="both", size=dataclasses.asdict(workload.size), steps=steps)
    ours, theirs = np.array(result["ours"]), np.array(result["peer"])
    apart = np.abs(ours - theirs)
    print(
        f"\nloss curves/{workload.name}: {steps} steps in fp32, same weights, batches, learning rates, tanh GELU: "
        f"from {ours[0]:.4f} to {ours[-1]:.4f} (ours), {theirs[0]:.4f} to {theirs[-1]:.4f} ({bench.peer.name})\n"
        f"largest difference: {apart.max():.1e} nats per token, at step {apart.argmax()}"
    )


def write_corpus(path: Path, megabytes: float) -> int:
    """Python sources of this machine as 4 kB documents in a .jsonl file; the bytes of text in it."""
    paths = (Path(p) for name in ("stdlib", "purelib") for p in [sysconfig.get_paths()[name]])
    sources = (source for folder in paths for source in sorted(folder.rglob("*.py")))
    texts = (source.read_text(encoding="utf-8", errors="replace") for source in sources)
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in documents(texts):
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= megabytes * 1e6:
                break
    return size


def compare_tokenizing(bench: Bench, megabytes: float) -> None:
    """Turn the same documents into shards on both sides in turn; check that the tokens agree; print MB/s and ratios."""
    file, cores, peer = bench.folder / "documents.jsonl", available_cores(), bench.peer
    size = write_corpus(file, megabytes)
    sides: list[tuple[str, int | None]] = [("ours", None), ("peer", None), ("peer", cores)]
    print(f"\ntokenize: {size / 1e6:.1f} MB of Python text in documents of 4 kB; median of {bench.rounds} processes")
    found: dict[tuple[str, int | None], list[Job]] = {side: [] for side in sides}
    for number in range(bench.rounds):
        for side, workers in sides if number % 2 == 0 else sides[::-1]:
            out = bench.folder / f"{side}-{workers}-{number}"
            job = {"work": "tokenize", "side": side, "file": str(file), "workers": workers, "out": str(out)}
            found[side, workers].append(bench.measure(**job))
    if len({(r["tokens"], r["sha256"]) for results in found.values() for r in results}) != 1:
        raise RuntimeError("the two sides made different tokens of the same documents")
    print(f"  {found[sides[0]][0]['tokens']:,} tokens, the same on both sides")
    print(f"  {'MB/s':34}{'without':>9}{'with start-up':>15}{'peak memory':>14}")
    rates = []
    names = [f"ours, {cores} threads", f"{peer.name}, its default workers", f"{peer.name}, {cores} workers"]
    for name, side in zip(names, sides, strict=True):
        middle = {key: statistics.median(r[key] for r in found[side]) for key in ("seconds", "wall", "peak_mib")}
        rates.append(size / 1e6 / middle["seconds"])
        whole = size / 1e6 / middle["wall"]
        print(f"  {name:34}{rates[-1]:9.2f}{whole:15.2f}{middle['peak_mib']:10.0f} MiB")
    print(disturbance(itertools.chain(*found.values())))
    for name, rate in zip(("its default", "all cores"), rates[1:], strict=True):
        print(
            f"ratio tokenize/{name}: {rates[0] / rate:.2f} (ours {rates[0]:.2f} MB/s, {peer.name} {rate:.2f} MB/s, "
            "start-up apart)"
        )


if __name__ == "__main__":
    run_command(main)
