"""The throughput sweep measures real steps, doubling the micro-batch until it can't, and says what to use."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import gpt2.optim.optimizer
import gpt2.training.sweep
from gpt2 import __main__ as command
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import make_config
from gpt2.planning.fits import setup_of
from gpt2.planning.flops import flops_per_token
from gpt2.planning.memory import memory
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes
from gpt2.training.sweep import Row, sweep, write_rows

ONE = Processes(0, 0, 1, torch.device("cpu"))
PEAK = 1e12


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> Iterator[None]:
    """Models so small are slower on two threads than on one; and the machine's peak is not measured each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(gpt2.training.sweep, "peak_flops", lambda device, precision: (PEAK, "assumed"))
    yield
    torch.set_num_threads(before)


def tiny(name: str = "demo") -> Run:
    """A preset's run with a tiny model, 8 sequences a step."""
    run = PRESETS[name][1]
    model = replace(run.model, vocab_size=257, block_size=16, n_layer=2, n_head=4, n_embd=32)
    parts = replace(run.parts, mlp_width=run.parts.mlp_width and 32)
    system = replace(run.system, compile="off", precision="fp32")
    return replace(run, model=model, parts=parts, data=replace(run.data, batch_tokens=8 * 16), system=system)


def test_the_micro_batch_doubles_up_to_the_sequences_of_a_step(monkeypatch):
    monkeypatch.setattr(gpt2.training.sweep, "SLOWER", 0.0)
    rows, run = list(sweep("demo", tiny(), ONE)), tiny()
    assert [row.micro_batch for row in rows] == [1, 2, 4, 8]
    work = flops_per_token(make_config(run.model, run.parts))
    for row in rows:
        assert (row.model, row.precision, row.compiled) == ("demo", "fp32", False)
        assert row.mfu == pytest.approx(work * row.tokens_per_second / PEAK)
        assert 0.1 < row.memory_gib < 16
    assert rows[-1].tokens_per_second > 1.5 * rows[0].tokens_per_second  # a step costs more than its products


@pytest.mark.parametrize("name", ["gpt-oss-demo", "magnitude-demo", "speedrun-demo"])
def test_every_kind_of_model_is_swept(name):
    assert next(sweep(name, tiny(name), ONE)).tokens_per_second > 0


def rates(monkeypatch, *values: float) -> list[int]:
    """The micro-batches of a sweep that measures these tokens/s."""
    measured = iter(values)
    monkeypatch.setattr(
        gpt2.training.sweep, "_step_seconds", lambda model, optimizer, x, *_: x.numel() / next(measured)
    )
    return [row.micro_batch for row in sweep("demo", tiny(), ONE)]


def test_a_sweep_ends_when_two_in_a_row_are_slower(monkeypatch):
    assert rates(monkeypatch, 100, 50, 120, 200) == [1, 2, 4, 8]
    assert rates(monkeypatch, 100, 50, 50) == [1, 2, 4]


def test_a_sweep_ends_when_memory_does(monkeypatch):
    largest = 2

    def measure(model, optimizer, x, *words) -> float:
        if len(x) > largest:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(gpt2.training.sweep, "_step_seconds", measure)
    assert [row.micro_batch for row in sweep("demo", tiny(), ONE)] == [1, 2]
    largest = 0
    with pytest.raises(UserError, match="not one sequence of demo fits"):
        next(sweep("demo", tiny(), ONE))


def test_on_a_cpu_half_of_the_free_memory_is_the_end(monkeypatch):
    monkeypatch.setattr(gpt2.training.sweep, "_step_seconds", lambda model, optimizer, x, *words: 1.0 * len(x))
    run = tiny()
    config = make_config(run.model, run.parts)
    needed = memory(config, replace(setup_of(run, config, ONE), micro_batch=4)).total
    for free, sizes in ((2 * needed, [1, 2, 4]), (2 * needed - 1, [1, 2])):
        monkeypatch.setattr(gpt2.training.sweep, "free_device_memory", lambda device, free=free: free)
        assert [row.micro_batch for row in sweep("demo", run, ONE)] == sizes


def test_each_step_updates_the_model(monkeypatch):
    updated = []

    def make_optimizer(model, *settings):
        optimizer = gpt2.optim.optimizer.make_optimizer(model, *settings)
        optimizer.register_step_pre_hook(lambda *_: updated.append(all(p.grad is not None for p in model.parameters())))
        return optimizer

    monkeypatch.setattr(gpt2.training.sweep, "make_optimizer", make_optimizer)
    next(sweep("demo", tiny(), ONE))
    assert updated == [True] * (gpt2.training.sweep.WARMUP + gpt2.training.sweep.MEASURED)


def test_the_speed_is_the_median_of_the_steps_after_the_first_ones(monkeypatch):
    seconds = [100.0] * gpt2.training.sweep.WARMUP + [float(i) for i in range(1, gpt2.training.sweep.MEASURED + 1)]
    clock = iter([time for step in seconds for time in (0.0, step)])
    monkeypatch.setattr(gpt2.training.sweep, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    median = (gpt2.training.sweep.MEASURED + 1) / 2
    assert next(sweep("demo", tiny(), ONE)).tokens_per_second == pytest.approx(16 / median)


def test_rows_are_in_the_file_as_soon_as_they_are_measured(tmp_path):
    def measure() -> Iterator[Row]:
        yield Row("demo", 1, "fp32", False, 1000.0, 0.5, 0.25)
        assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 2
        yield Row("demo", 2, "fp32", False, 1500.0, 0.5, 0.25)

    assert len(list(write_rows(measure(), tmp_path / "sweep.csv"))) == 2
    with open(tmp_path / "sweep.csv", newline="") as file:
        first, second = csv.DictReader(file)
    columns = ["model", "micro_batch", "precision", "compiled", "tokens_per_second", "memory_gib", "mfu"]
    assert list(first) == columns and float(second["tokens_per_second"]) == 1500.0


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"can't write .*sweep.csv.*--out"):
        list(write_rows([], tmp_path / "no" / "sweep.csv"))


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="unknown preset 'gpt5'; known: gpt2-124m, train-gpt-2, demo"):
        command.main(["sweep", "gpt5"])


def test_the_command_says_which_speed_to_use(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "tiny", ("a tiny model", tiny()))
    flags = ["--out", str(tmp_path / "s.csv"), "--device", "cpu", "--compile", "off", "--precision", "fp32"]
    command.main(["sweep", "tiny", *flags])
    with open(tmp_path / "s.csv", newline="") as file:
        best = max(float(row["tokens_per_second"]) for row in csv.DictReader(file))
    assert capsys.readouterr().out.splitlines()[-1] == f"--languini.tokens-per-second {best:.0f}"
