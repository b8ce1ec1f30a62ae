"""log.txt is written as the contract says and read back without loss; the figure is drawn from it."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT, run_python

from gpt2.logs import RunLog, read_log
from gpt2.plot import plot_logs


def make_log(path, steps: int = 30) -> None:
    log = RunLog(path, active=True, steps=steps)
    log.header({"command": "train_gpt2.py --x 1: 2", "hardware": "abacus"})
    for step in range(steps):
        if step % 10 == 0:
            log.validation(step, 9 - step / 7, 3 - step / 50)
        log.step(step, 10 - step / 7, 1e-3 * step, 2.5, 0.125, 4096)
    log.samples(steps, ['two\nlines | "quoted" \u2028 é'])
    log.close()


def test_lines_are_those_of_the_published_log(tmp_path):
    log = RunLog(tmp_path / "log.txt", active=True, steps=1)
    log.step(0, 10.955009, 1.2e-5, 15.9685, 12.70184, 524288)
    log.validation(250, 6.1631, 1.8312)
    log.close()
    assert (tmp_path / "log.txt").read_text() == (
        "step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84ms | tok/sec: 41276.54\n"
        "step  250 | val loss: 6.1631 | bits/byte: 1.8312\n"
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


def test_losses_that_are_not_numbers_are_read_too(tmp_path):
    (tmp_path / "log.txt").write_text(
        "step    0 | loss: nan | lr: 1.2000e-05 | norm: inf | dt: 1.00ms | tok/sec: 1.00\nhalf a li"
    )
    log = read_log(tmp_path / "log.txt")
    assert np.isnan(log.loss[0]) and np.isinf(log.norm[0])


def test_only_the_first_process_writes(tmp_path):
    log = RunLog(tmp_path / "log.txt", active=False, steps=1)
    log.step(0, 1.0, 1.0, 1.0, 1.0, 1)
    log.close()
    assert not (tmp_path / "log.txt").exists()


def test_plotting_overlays_logs_into_a_picture(tmp_path):
    for name in "ab":
        make_log(tmp_path / f"{name}.txt")
    run_python("-m", "gpt2.plot", tmp_path / "a.txt", "-o", tmp_path / "one.png")
    run_python("-m", "gpt2.plot", tmp_path / "a.txt", tmp_path / "b.txt", "-o", tmp_path / "two.png")
    one, two = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert one.shape[0] > 500 and one.std() > 0.01 and not np.array_equal(one, two)


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
    ):
        drawn = [line.get_xydata() for line in axes[label].lines]
        assert any(np.array_equal(line, np.column_stack([x, y])) for line in drawn), label


def test_a_terminal_gets_a_bar_and_a_file_plain_lines(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from test_logs_and_plot import make_log\nimport sys\nmake_log(sys.argv[1])\n")
    piped = run_python(script, tmp_path / "piped.txt")
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, script, tmp_path / "shown.txt"]
    process = subprocess.Popen(command, stdout=ours, stderr=ours, env=environment)
    os.close(ours)
    shown = ""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 4096):
            shown += part.decode(errors="replace")
    assert process.wait() == 0
    assert "30/30" in shown and "step/s" in shown
    assert "step/s" not in piped.stdout + piped.stderr and "step   29 | loss" in piped.stdout
    assert (tmp_path / "piped.txt").read_text() == (tmp_path / "shown.txt").read_text()


@pytest.mark.parametrize(
    "content", [None, "", "no log\n", "step    0 | loss: foo | lr: 1 | norm: 1 | dt: 1ms | tok/sec: 1"]
)
def test_a_file_that_is_no_log_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "log.txt").write_text(content)
    done = run_python("-m", "gpt2.plot", tmp_path / "log.txt", check=False)
    assert done.returncode == 2 and "give the log.txt of a run" in done.stderr


def test_an_unwritable_picture_is_refused(tmp_path):
    make_log(tmp_path / "log.txt")
    for out in ("/proc/loss.png", tmp_path / "loss.nonsense"):
        done = run_python("-m", "gpt2.plot", tmp_path / "log.txt", "-o", out, check=False)
        assert done.returncode == 2 and "can't write" in done.stderr
