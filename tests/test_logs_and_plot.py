"""log.txt is written as the contract says and read back without loss, and so are other projects' logs; the figure
is drawn from them."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import warnings
from types import SimpleNamespace

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, command, run_python, train_words

from gpt2 import __main__ as gpt2
from gpt2.logs.plot import plot_logs, positions
from gpt2.logs.reader import published_log, published_runs, read_log
from gpt2.logs.writer import RunLog, StepMetrics, truncate_log
from gpt2.system.errors import UserError


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def metrics(loss=1.0, lr=1.0, norm=1.0, seconds=1.0, tokens=1, epoch=0.0) -> StepMetrics:
    return StepMetrics(loss, lr, norm, seconds, tokens, epoch)


def make_log(path, steps: int = 30, first: int = 0) -> None:
    log = RunLog(path, active=True, steps=steps, first=first, ideal_seconds=0.371 * 0.125)
    log.header({"command": "train_gpt2.py --x 1: 2", "hardware": "abacus"})
    for step in range(first, steps):
        if step % 10 == 0:
            log.validation(step, 9 - step / 7, 3 - step / 50)
        log.step(step, metrics(10 - step / 7, 1e-3 * step, 2.5, 0.125, 4096, epoch=step / 100))
    log.hellaswag(steps, 2561, 10042)
    log.samples(steps, ['two\nlines | "quoted" \u2028 é'])
    log.close()


def test_lines_have_the_form_of_the_published_log(tmp_path):
    log = RunLog(tmp_path / "log.txt", active=True, steps=1)
    log.step(0, metrics(10.955009, 1.2e-5, 15.9685, 12.70184, 524288))
    log.validation(250, 6.1631, 1.8312)
    log.hellaswag(250, 2561, 10042)
    log.measured(250, SimpleNamespace(loss=6.1, bits_per_byte=1.8, top1=0.25, top10=0.5))
    log.skipped(12, "the loss is nan")
    log.note(250, "checkpoint", "not saved\n(No space left on device)")
    log.gpu(250, {"utilisation %": 98.0, "memory GiB": 23.456})
    log.gpu(250, {})
    log.norms(250, {"wte": (0.125, 31.5, 0.0625), "h.0": (1e-9, 2.0, 1e-3)})
    log.close()
    assert (tmp_path / "log.txt").read_text() == (
        "step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84ms | tok/sec: 41276.54\n"
        "step  250 | val loss: 6.1631 | bits/byte: 1.8312\n"
        "step  250 | hellaswag: 2561/10042 = 0.2550\n"
        "step  250 | measured: loss 6.1000 | bits/byte 1.8000 | top-1 0.2500 | top-10 0.5000\n"
        "step   12 | skipped: the loss is nan\n"
        "step  250 | checkpoint: not saved (No space left on device)\n"
        "step  250 | gpu: utilisation % 98 | memory GiB 23.46\n"
        "step  250 | norms: wte 1.2500e-01 3.1500e+01 6.2500e-02 | h.0 1.0000e-09 2.0000e+00 1.0000e-03\n"
    )


def test_a_log_is_read_back_as_it_was_written(tmp_path):
    make_log(tmp_path / "log.txt")
    log = read_log(tmp_path / "log.txt")
    np.testing.assert_array_equal(log.step, np.arange(30))
    np.testing.assert_allclose(log.loss, 10 - np.arange(30) / 7, atol=1e-6)
    np.testing.assert_allclose(log.lr, 1e-3 * np.arange(30))
    np.testing.assert_allclose(log.tok_per_sec, 32768)
    np.testing.assert_allclose(log.dt, 125)
    np.testing.assert_array_equal(log.val_step, [0, 10, 20])
    np.testing.assert_allclose(log.bits_per_byte, [3, 2.8, 2.6])
    assert log.header == {"command": "train_gpt2.py --x 1: 2", "hardware": "abacus"}
    assert log.batch_tokens == 4096 and log.source == "log.txt of train_gpt2.py"
    np.testing.assert_allclose(log.seconds, 0.125 * np.arange(1, 31))


class Notebook:
    """A tracker that remembers, and fails when told to."""

    def __init__(self, fails_at: int | None = None):
        self.name, self.fails_at, self.values, self.closed = "notebook", fails_at, {}, False

    def log(self, step, values):
        if step == self.fails_at:
            raise ConnectionError("network unreachable")
        self.values.update({(step, name): value for name, value in values.items()})

    def text(self, step, name, text):
        self.values[step, name] = text

    def close(self):
        self.closed = True


def test_every_value_also_goes_to_the_trackers(tmp_path):
    seen = Notebook()
    log = RunLog(tmp_path / "log.txt", active=True, steps=2, trackers=[seen], ideal_seconds=0.2)
    log.header({"command": "train_gpt2.py"})
    log.step(1, metrics(3.5, 1e-3, 2.5, 0.5, 4096, epoch=0.25))
    log.validation(1, 3.25, 1.5)
    log.hellaswag(1, 1, 4)
    log.measured(1, SimpleNamespace(loss=3.0, bits_per_byte=1.4, top1=0.25, top10=0.5))
    log.samples(1, ["a", "b"])
    log.skipped(1, "the loss is nan")
    log.gpu(1, {"temperature C": 61.0})
    log.norms(1, {"h.0": (0.5, 2.0, 0.25)})
    log.close()
    assert seen.closed and seen.values == {
        **{(0, "run"): "command: train_gpt2.py", (1, "samples"): "a\n\nb"},
        **{(1, f"train/{name}"): value for name, value in (("loss", 3.5), ("lr", 1e-3), ("norm", 2.5), ("ms", 500.0))},
        **{(1, "train/tok_per_sec"): 8192.0, (1, "train/tokens"): 8192.0, (1, "train/epoch"): 0.25},
        **{
            (1, "train/mfu"): 0.4,
            (1, "val/loss"): 3.25,
            (1, "val/bits_per_byte"): 1.5,
            (1, "hellaswag/accuracy"): 0.25,
        },
        **{(1, "measured/loss"): 3.0, (1, "measured/bits_per_byte"): 1.4, (1, "train/skipped"): 1.0},
        **{(1, "measured/top-1"): 0.25, (1, "measured/top-10"): 0.5, (1, "gpu/temperature C"): 61.0},
        **{(1, "gradient_norm/h.0"): 0.5, (1, "weight_norm/h.0"): 2.0, (1, "step_norm/h.0"): 0.25},
    }


def test_a_tracker_that_fails_is_given_up_once_and_the_run_goes_on(tmp_path):
    broken, sound = Notebook(fails_at=1), Notebook()
    sound.close = lambda: 1 / 0
    log = RunLog(tmp_path / "log.txt", active=True, steps=3, trackers=[broken, sound])
    for step in range(3):
        log.step(step, metrics())
    log.close()
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert [line for line in lines if "notebook" in line] == [
        "step    1 | notebook: given up, the run goes on without it (network unreachable)",
        "step    3 | notebook: given up, the run goes on without it (division by zero)",
    ]
    assert {step for step, _ in sound.values} == {0, 1, 2} and {step for step, _ in broken.values} == {0}


def test_a_resumed_log_goes_on_from_where_the_checkpoint_stood(tmp_path):
    path = tmp_path / "log.txt"
    log = RunLog(path, active=True, steps=30)
    for step in range(20):
        if step == 10:
            position = log.position()
        log.step(step, metrics(1.0 + step))
    with open(path, "a") as file:  # killed within a line
        file.write("step   20 | lo")
    truncate_log(path, position)
    assert path.read_bytes().count(b"\n") == 10 and path.stat().st_size == position
    make_log(path, first=10)
    whole = read_log(path)
    np.testing.assert_array_equal(whole.step, np.arange(30))
    np.testing.assert_allclose(whole.loss[:10], 1 + np.arange(10))
    np.testing.assert_allclose(whole.loss[10:], 10 - np.arange(10, 30) / 7, atol=1e-6)
    before = path.read_bytes()
    truncate_log(path, len(before) + 1)
    assert path.read_bytes() == before


def test_a_terminal_without_these_letters_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", open(tmp_path / "terminal", "w", encoding="ascii"))  # noqa: SIM115
    make_log(tmp_path / "log.txt")
    sys.stdout.close()
    assert "\\xe9" in (tmp_path / "terminal").read_text() and "é" in (tmp_path / "log.txt").read_text()


def test_the_bar_of_a_resumed_run_goes_on_from_its_first_step(tmp_path):
    """So that the time left is reckoned from the steps of this process alone."""
    log = RunLog(tmp_path / "log.txt", active=True, steps=30, first=10)
    assert (log.bar.n, log.bar.total) == (10, 30)
    log.close()


def test_a_new_line_is_begun_where_a_killed_run_left_half_of_one(tmp_path):
    (tmp_path / "log.txt").write_text("step    0 | lo")
    make_log(tmp_path / "log.txt", steps=1)
    assert "step    0 | lo\n# command" in (tmp_path / "log.txt").read_text()


def test_a_full_disk_holds_lines_back_and_does_not_end_the_run(tmp_path, capsys):
    log = RunLog(tmp_path / "log.txt", active=True, steps=4)
    disk, full = os.dup(log.file.fileno()), os.open("/dev/full", os.O_WRONLY)
    for step in range(4):
        if step in (1, 3):
            os.dup2(full if step == 1 else disk, log.file.fileno())
        log.step(step, metrics())
    log.close()
    assert capsys.readouterr().out.count("can't be written (No space left on device)") == 1
    np.testing.assert_array_equal(read_log(tmp_path / "log.txt").step, np.arange(4))


def test_a_run_whose_output_is_piped_into_head_goes_on_quietly_to_its_end(shards, tmp_path):
    """As in `train_gpt2.py … | head -1`, with the buffered output of a pipe."""
    run = command(*train_words(shards, tmp_path / "run"))
    del run["env"]["PYTHONUNBUFFERED"]
    process = subprocess.Popen(**run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith("# command: train_gpt2.py demo")
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 0
    assert not any(words in said for words in ("Traceback", "Exception ignored", "BrokenPipe")), said
    assert len(read_log(tmp_path / "run" / "log.txt").step) == 20


def test_a_closed_terminal_does_not_end_the_run(tmp_path, monkeypatch):
    """Its lines are dropped, and nothing is left to be written when Python ends."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", open(write, "w"))  # noqa: SIM115
    make_log(tmp_path / "log.txt")
    sys.stdout.close()
    assert len(read_log(tmp_path / "log.txt").step) == 30


def test_losses_that_are_not_numbers_are_read_too(tmp_path):
    (tmp_path / "log.txt").write_text(
        "step    0 | loss: nan | lr: 1.2000e-05 | norm: inf | dt: 1.00ms | tok/sec: 1.00\n"
        "step    1 | loss: 5.0 | lr: 1.2000e-05 | norm: 1.5 | dt: 1.00ms | tok/sec: 1.00\nhalf a li"
    )
    log = read_log(tmp_path / "log.txt")
    assert np.isnan(log.loss[0]) and np.isinf(log.norm[0])


def test_only_the_first_process_writes(tmp_path):
    log = RunLog(tmp_path / "log.txt", active=False, steps=1)
    log.step(0, metrics())
    log.close()
    assert not (tmp_path / "log.txt").exists()


def test_plotting_overlays_logs_into_a_picture(tmp_path, capsys):
    a, b, one, two = (tmp_path / name for name in ("a.txt", "b.txt", "one.png", "two.png"))
    for path in (a, b):
        make_log(path)
    run_python("-m", "gpt2", "plot", a, "-o", one)
    capsys.readouterr()
    gpt2.main(["plot", str(a), str(b), "-o", str(two)])
    assert capsys.readouterr().out == f"wrote {two}\n"
    single, overlaid = matplotlib.image.imread(one), matplotlib.image.imread(two)
    assert single.shape[0] > 500 and single.std() > 0.01 and not np.array_equal(single, overlaid)


def test_the_figure_shows_everything_in_the_log(tmp_path):
    make_log(tmp_path / "log.txt")
    log = read_log(tmp_path / "log.txt")
    axes = {axis.get_ylabel(): axis for axis in plot_logs([log]).axes}
    for label, x, y in (
        ("loss (nats per token)", log.step, log.loss),
        ("loss (nats per token)", log.val_step, log.val_loss),
        ("learning rate", log.step, log.lr),
        ("gradient norm", log.step, log.norm),
        ("tokens/s, all processes", log.step, log.tok_per_sec),
        ("HellaSwag, acc_norm", log.hellaswag_step, log.hellaswag),
    ):
        drawn = [line.get_xydata() for line in axes[label].lines]
        assert any(np.array_equal(line, np.column_stack([x, y])) for line in drawn), label


def test_a_terminal_gets_a_bar_and_a_file_plain_lines(tmp_path, monkeypatch, capfd):
    make_log(tmp_path / "piped.txt", steps=3)
    piped = capfd.readouterr()
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with open(terminal, "w", encoding="utf-8") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        patched.setattr(sys, "stderr", stream)
        make_log(tmp_path / "shown.txt", steps=3)
    chunks = []
    with contextlib.suppress(OSError):  # the other side is closed, and everything was read
        while chunk := os.read(reader, 2**16):
            chunks.append(chunk)
    shown = b"".join(chunks).decode(errors="replace")
    assert "3/3" in shown and "step/s" in shown
    assert "loss 9.7143, 12.3k tokens, epoch 0.02, MFU 37.1%" in shown
    assert "step/s" not in piped.out + piped.err and "step    2 | loss" in piped.out
    assert (tmp_path / "piped.txt").read_text() == (tmp_path / "shown.txt").read_text()


README = (ROOT / "README.md").read_text(encoding="utf-8")  # it quotes lines of a log
HEADER = "# command: train_gpt2.py demo\n# tokens: 4,096,000 = 2,000 steps of 2,048; 2.90e+13 FLOPs\n"
VALIDATION = "step    0 | val loss: 10.9500 | bits/byte: 3.8312\n"
NO_LOGS = [
    "",
    "no log\n",
    b"\xff\x00",
    README,
    HEADER,
    HEADER + VALIDATION,
    "step    0 | loss: foo | lr: 1 | norm: 1 | dt: 1ms | tok/sec: 1",
]


@pytest.mark.parametrize("content", [None, *NO_LOGS])
def test_a_file_that_is_no_log_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "log.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"log.txt.*give the log.txt of a run"):
        read_log(tmp_path / "log.txt")


def test_a_text_that_quotes_a_log_is_refused_and_not_drawn(tmp_path):
    done = run_python("-m", "gpt2", "plot", ROOT / "README.md", "-o", tmp_path / "loss.png", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert done.stderr.startswith(
        f"error: {ROOT / 'README.md'} holds only one step of a log; give the log.txt of a run"
    )
    assert not (tmp_path / "loss.png").exists()


def test_a_missing_log_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"can't read the log .*log.txt \(No such file"):
        gpt2.main(["plot", str(tmp_path / "log.txt")])


PEERS = {
    "build-nanogpt": "0 val 10.9500\n0 hella 0.2463\n0 train 10.955009\n1 train 10.600123\n2 val 9.5000\n"
    "2 hella 0.2512\n2 train 9.450001\n3 train 8.1",
    "build-nanogpt, printed": "using device: cuda:0\ntotal desired batch size: 524288\nvalidation loss: 10.9500\n"
    "HellaSwag accuracy: 2473/10042=0.2463\n"
    "step     0 | loss: 10.955009 | lr 8.3916e-07 | norm: 15.3660 | dt: 524.29ms | tok/sec: 1000000.00\n"
    "step     1 | loss: 10.600123 | lr 1.6783e-06 | norm: 12.0001 | dt: 524.29ms | tok/sec: 1000000.00\n"
    "validation loss: 9.5000\nHellaSwag accuracy: 2522/10042=0.2512\nrank 0 sample 0: Hello, I'm a step\n"
    "step     2 | loss: 9.450001 | lr 2.5175e-06 | norm: 8.5000 | dt: 524.29ms | tok/sec: 1000000.00\nvalidation los",
    **{
        f"Train GPT-2, lr{colon}, dt{ms}": "total desired batch size: 524288\n"
        "=> calculated gradient accumulation steps: 4\nfound 99 shards for split train\nValidation loss 10.9500\n"
        f"step    0 | loss: 10.955009 | lr{colon} 1.2000e-05 | norm: 15.9685 | dt: 12701.84{ms} | tok/sec: 41276.54\n"
        f"step    1 | loss: 10.600123 | lr{colon} 2.4000e-05 | norm: 9.0330 | dt: 498.35{ms} | tok/sec: 1052056.01\n"
        "Validation loss 9.5000\n"
        f"step    2 | loss: 9.450001 | lr{colon} 3.6000e-05 | norm: 5.4874 | dt: 493.48{ms} | tok/sec: 1062435.81\nVal"
        for colon in ("", ":")
        for ms in ("", "ms")
    },
    "nanoGPT": "tokens per iteration will be: 491,520\nnum decayed parameter tensors: 50\n"
    "step 0: train loss 10.9489, val loss 10.9500\niter 0: loss 10.9550, time 20000.00ms, mfu -100.00%\n"
    "iter 1: loss 10.6001, time 500.00ms, mfu 35.12%\nsaving checkpoint to out\n"
    "step 2: train loss 9.4989, val loss 9.5000\niter 2: loss 9.4500, time 500.00ms, mfu 35.12%\niter 3: loss 9.",
    "llm.c": "s:0 tel:10.9500\ns:0 eval:0.2463\ns:0 trl:10.9550 lr:0.000001 norm:15.37\n"
    "s:1 trl:10.6001 lr:0.000002 norm:12.00\ns:2 tel:9.5000\ns:2 eval:0.2512\ns:2 trl:9.4500 lr:0.000003 norm:8.50\n"
    "s:3 trl:8.1234 lr:0.00",
    "llm.c, from Python": "s:0 tel:10.950000\ns:0 trl:10.955009\ns:1 trl:10.600123\n"
    "s:2 tel:9.500000\ns:2 trl:9.450001\n",
    "modded-nanogpt": 'import os\n# rate: 1\nprint(f"step:{step}/{n} val_loss:{val_loss:.4f} train_time:{t:.0f}ms")\n'
    "====\nstep:0/3 val_loss:10.9500 train_time:300ms step_avg:nanms\n"
    "step:1/3 train_loss:10.9550 train_time:9000ms step_avg:nanms\n"
    "step:2/3 train_loss:10.6001 train_time:9500ms step_avg:nanms\n"
    "step:2/3 val_loss:9.5000 train_time:9500ms step_avg:nanms\n"
    "step:3/3 train_loss:9.4500 train_time:10000ms step_avg:500.00ms\nstep:3/3 val_lo",
}


@pytest.mark.parametrize("name", PEERS)
def test_other_projects_logs_are_read_by_their_lines(tmp_path, name):
    (tmp_path / "any.name").write_text(PEERS[name])
    log = read_log(tmp_path / "any.name")
    assert log.source == name.split(",")[0] and log.header == {}
    np.testing.assert_array_equal(log.step, [0, 1, 2])
    np.testing.assert_allclose(log.loss, [10.955, 10.6001, 9.45], atol=1e-4)
    np.testing.assert_array_equal(log.val_step, [0, 2])
    np.testing.assert_allclose(log.val_loss, [10.95, 9.5])
    if "hella" in PEERS[name].lower() or "eval" in PEERS[name]:
        np.testing.assert_array_equal(log.hellaswag_step, [0, 2])
        np.testing.assert_allclose(log.hellaswag, [0.2463, 0.2512])
    assert np.isnan(log.bits_per_byte).all()


def test_what_other_projects_say_of_speed_is_read(tmp_path):
    logs = {}
    for name in ("build-nanogpt, printed", "nanoGPT", "modded-nanogpt", "llm.c"):
        (tmp_path / "log").write_text(PEERS[name])
        logs[name] = read_log(tmp_path / "log")
    lecture, nano, modded, c = logs.values()
    assert (lecture.batch_tokens, nano.batch_tokens) == (524288, 491520)
    np.testing.assert_allclose(nano.tok_per_sec, [24576, 983040, 983040])
    np.testing.assert_allclose(modded.seconds, [9, 9.5, 10])
    np.testing.assert_allclose(modded.dt, [9000, 500, 500])
    assert np.isnan(c.seconds).all() and np.isnan(modded.tok_per_sec).all() and np.isnan(c.batch_tokens)
    np.testing.assert_allclose(c.norm, [15.37, 12, 8.5])


def test_every_tenth_iteration_stands_for_ten(tmp_path):
    """nanoGPT prints every tenth, and its evaluation counts in one of them alone."""
    times = {0: 5000, 10: 100, 20: 3000, 30: 100, 40: 100}
    lines = (f"iter {i}: loss 4.0000, time {t}.00ms, mfu 30.00%\n" for i, t in times.items())
    (tmp_path / "log").write_text("".join(lines))
    np.testing.assert_allclose(read_log(tmp_path / "log").seconds, [5, 6, 9.9, 10.9, 11.9])


def test_a_clock_that_was_set_back_goes_on(tmp_path):
    """modded-nanogpt's early records start their clock again after the tenth step."""
    clock = [70000, 70200, 200, 400, 600]
    lines = (f"step:{i}/5 train_loss:5.0000 train_time:{t}ms step_avg:nanms\n" for i, t in enumerate(clock, 1))
    (tmp_path / "log").write_text("".join(lines))
    np.testing.assert_allclose(read_log(tmp_path / "log").seconds, [70, 70.2, 70.4, 70.6, 70.8])


def test_steps_that_were_made_again_after_a_crash_count_once(tmp_path):
    again = "".join(
        f"s:{s} trl:{loss:.4f} lr:0.000001 norm:1.00\n" for s, loss in [(0, 9), (1, 8), (2, 7), (3, 6), (2, 5)]
    )
    (tmp_path / "main.log").write_text("s:0 tel:9.0000\n" + again)
    np.testing.assert_allclose(read_log(tmp_path / "main.log").loss, [9, 8, 5])


PUBLISHED = """total desired batch size: 524288
=> calculated gradient accumulation steps: 4
found 99 shards for split train
found 1 shards for split val
num decayed parameter tensors: 50, with 124,354,560 parameters
num non-decayed parameter tensors: 98, with 121,344 parameters
using fused AdamW: True
Validation loss 10.9535
step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84 | tok/sec: 41276.54
step    1 | loss: 10.440608 | lr: 2.4000e-05 | norm: 9.0330 | dt: 498.35 | tok/sec: 1052056.01
step    2 | loss: 10.040066 | lr: 3.6000e-05 | norm: 5.4874 | dt: 493.48 | tok/sec: 1062435.81
"""  # the first lines that the published run of Train GPT-2 printed, on 8 A100


def test_the_published_run_is_read_as_it_was_printed(tmp_path):
    (tmp_path / "printed.txt").write_text(PUBLISHED)
    log = read_log(tmp_path / "printed.txt")
    assert (log.source, log.batch_tokens) == ("Train GPT-2", 524288)
    np.testing.assert_array_equal(log.loss, [10.955009, 10.440608, 10.040066])
    np.testing.assert_array_equal(log.lr, [1.2e-5, 2.4e-5, 3.6e-5])
    np.testing.assert_array_equal(log.norm, [15.9685, 9.0330, 5.4874])
    np.testing.assert_array_equal(log.dt, [12701.84, 498.35, 493.48])
    np.testing.assert_array_equal(log.tok_per_sec, [41276.54, 1052056.01, 1062435.81])
    assert (log.val_step.tolist(), log.val_loss.tolist()) == ([0], [10.9535])
    np.testing.assert_array_equal(published_log("train-gpt-2").loss[:3], log.loss)


@pytest.mark.parametrize("x", ["step", "tokens", "hours"])
def test_published_runs_are_drawn_beside_a_run_folder(tmp_path, x):
    (tmp_path / "run").mkdir()
    make_log(tmp_path / "run" / "log.txt")
    names = [name for name in published_runs() if x != "hours" or name != "lecture"]  # its hours are not known
    gpt2.main(["plot", str(tmp_path / "run"), "--with", ",".join(names), "--x", x, "-o", str(tmp_path / "all.png")])
    assert (tmp_path / "all.png").exists()
    logs = [read_log(tmp_path / "run"), *map(published_log, names)]
    labels = [text.get_text() for text in plot_logs(logs, x).axes[0].get_legend().get_texts()]
    for name in names:
        title, loss = published_runs()[name]["title"], published_runs()[name]["val_loss"][-1][1]
        assert f"{title}, validation: {loss:.4f} nats at the end" in labels and " val of FineWeb" in title


def test_an_unknown_published_run_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="--with lectur is not a published run; known: lecture, train-gpt-2, llmc-124m"):
        gpt2.main(["plot", str(tmp_path), "--with", "speedrun-8,lectur"])


@pytest.mark.parametrize("x", ["step", "tokens", "hours"])
def test_any_logs_overlay_in_one_figure(tmp_path, x):
    make_log(tmp_path / "own.txt")
    (tmp_path / "lecture.txt").write_text(PEERS["build-nanogpt, printed"])
    (tmp_path / "nano.txt").write_text(PEERS["nanoGPT"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_logs([read_log(tmp_path / f"{name}.txt") for name in ("own", "lecture", "nano")], x)
        figure.savefig(tmp_path / "all.png")
    loss = figure.axes[0]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    for name in ("own.txt", "lecture.txt", "nano.txt"):
        assert sum(label.startswith(f"{name}, validation: ") for label in labels) == 1
        assert sum(label.startswith(f"{name}, mean of ") for label in labels) == 1
    assert {axis.get_xlabel() for axis in figure.axes} == {x}


@pytest.mark.parametrize("name", PEERS)
def test_a_panel_without_numbers_is_left_out(tmp_path, name):
    (tmp_path / "log").write_text(PEERS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_logs([read_log(tmp_path / "log")])
        figure.savefig(tmp_path / "one.png")
    for axis in figure.axes:
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]
        assert any(np.isfinite(values).any() for values in drawn), axis.get_ylabel()
    assert ("HellaSwag, acc_norm" in {axis.get_ylabel() for axis in figure.axes}) == (
        "hella" in PEERS[name].lower() or "eval" in PEERS[name]
    )


def test_tokens_and_hours_are_those_of_the_run(tmp_path):
    make_log(tmp_path / "log.txt")
    log = read_log(tmp_path / "log.txt")
    np.testing.assert_allclose(positions(log, log.val_step, "tokens"), [0, 40960, 81920])
    np.testing.assert_allclose(positions(log, log.val_step, "hours") * 3600, [0, 1.25, 2.5])
    (tmp_path / "log.txt").write_text("# tokens: 4,096,000 = 2,000 steps of 2,048; 1e18 FLOPs\n" + PEERS["llm.c"])
    for x, says in (("tokens", "how many tokens a step has"), ("hours", "how long a step took")):
        with pytest.raises(UserError, match=says):
            plot_logs([read_log(tmp_path / "log.txt")], x)


def test_hours_of_a_reference_accelerator_are_tokens_by_its_speed(tmp_path):
    make_log(tmp_path / "log.txt")
    log = read_log(tmp_path / "log.txt")
    np.testing.assert_allclose(positions(log, log.val_step, "step", 2048.0) * 3600, [0, 20, 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, *others = plot_logs([log], tokens_per_second=55_416.0).axes
    assert loss.get_xlabel() == "hours of an accelerator at 55,416 tokens/s"
    assert others and {axis.get_xlabel() for axis in others} == {"hours"}
    (tmp_path / "log.txt").write_text(PEERS["llm.c"])
    with pytest.raises(UserError, match="how many tokens a step has; leave --tokens-per-second out"):
        plot_logs([read_log(tmp_path / "log.txt")], tokens_per_second=55_416.0)


def test_bits_per_byte_are_drawn_for_every_loss(tmp_path):
    """A byte has the same number of tokens all along: the training loss is converted as validations were."""
    for step, loss in ((0, 8.0), (10, 4.0)):
        with open(tmp_path / "log.txt", "a") as file:
            file.write(f"step {step} | val loss: {loss:.4f} | bits/byte: {loss / 2:.4f}\n")
            file.write(f"step {step} | loss: {loss + 1:.6f} | lr: 1e-3 | norm: 1.0 | dt: 1.00ms | tok/sec: 1000.00\n")
    loss = plot_logs([read_log(tmp_path / "log.txt")], y="bits-per-byte").axes[0]
    assert loss.get_ylabel() == "loss (bits per byte)"
    drawn = [list(line.get_ydata()) for line in loss.lines]
    assert [4.5, 2.5] in drawn and [4.0, 2.0] in drawn
    (tmp_path / "log.txt").write_text(PEERS["llm.c"])
    with pytest.raises(UserError, match="leave --y bits-per-byte out"):
        plot_logs([read_log(tmp_path / "log.txt")], y="bits-per-byte")


def test_losses_of_different_vocabularies_are_never_on_one_axis_of_nats(tmp_path):
    """They are drawn in bits per byte where every log has them, and refused elsewhere."""
    logs = {}
    for name, size in (("small", 2048), ("large", 4096), ("same", 2048)):
        lines = f'# model: 1 parameters, {{"vocab_size": {size}}}\n'
        for step in range(3):
            lines += f"step {step} | val loss: {8.0 - step:.4f} | bits/byte: {4.0 - step / 2:.4f}\n"
        (tmp_path / f"{name}.txt").write_text(lines)
        logs[name] = read_log(tmp_path / f"{name}.txt")
    unit = {name: plot_logs([logs["small"], logs[name]]).axes[0].get_ylabel() for name in ("same", "large")}
    assert unit == {"same": "loss (nats per token)", "large": "loss (bits per byte)"}
    with pytest.raises(UserError, match=r"small.txt has a vocabulary of 2,048 .*large.txt one of 4,096.*--y bits-per"):
        plot_logs([logs["small"], logs["large"]], y="nats")
    with pytest.raises(UserError, match=r"124M, val of FineWeb one of 50,257.*; draw them apart, because not all say"):
        plot_logs([logs["small"], published_log("llmc-124m")])


@pytest.mark.parametrize("flags", [["0"], ["nan"], ["inf"], ["-1"], ["100", "--x", "tokens"]])
def test_a_speed_that_makes_no_sense_is_refused(tmp_path, flags):
    make_log(tmp_path / "log.txt", steps=1)
    out = tmp_path / "loss.png"
    with pytest.raises(UserError, match="--tokens-per-second"):
        gpt2.main(["plot", str(tmp_path / "log.txt"), "-o", str(out), "--tokens-per-second", *flags])
    assert not out.exists()


def test_the_header_says_how_many_tokens_a_step_has(tmp_path):
    make_log(tmp_path / "log.txt")
    with open(tmp_path / "log.txt", "a") as file:
        file.write("# tokens: 4,096,000 = 2,000 steps of 2,048; 2.90e+13 FLOPs\n")
    assert read_log(tmp_path / "log.txt").batch_tokens == 2048


def test_a_refused_file_lists_the_logs_that_are_read(tmp_path):
    (tmp_path / "log.txt").write_text("tokens per iteration will be: 491,520\n")
    with pytest.raises(UserError, match=r"build-nanogpt, Train GPT-2, nanoGPT, llm\.c, modded-nanogpt"):
        read_log(tmp_path / "log.txt")


def test_a_picture_has_the_name_that_is_printed(tmp_path, monkeypatch):
    """matplotlib adds .png to a name without an ending, also to that of a folder."""
    monkeypatch.chdir(tmp_path)
    make_log(tmp_path / "log.txt")
    (tmp_path / "folder.png").mkdir()
    for out, what in ((".", "is a folder"), ("folder.png", "is a folder"), ("picture", "has no ending")):
        with pytest.raises(UserError, match=rf"^-o {out} {what}; name a .png, .svg or .pdf file$"):
            gpt2.main(["plot", "log.txt", "-o", out])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "log.txt"]


def test_an_unwritable_picture_is_refused(tmp_path):
    make_log(tmp_path / "log.txt")
    for out in ("/proc/loss.png", str(tmp_path / "loss.nonsense")):
        with pytest.raises(UserError, match="can't write"):
            gpt2.main(["plot", str(tmp_path / "log.txt"), "-o", out])
