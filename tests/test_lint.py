"""Formatting, lint, types and the direction of imports hold for the whole repository."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT

CHECKS = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["importlinter.cli", "lint-imports"]]


@pytest.mark.parametrize("words", CHECKS, ids=" ".join)
def test_the_code_is_clean(words):
    module, *rest = words
    command = [sys.executable, "-m", module, *rest]
    if module.startswith("importlinter"):
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "seconds"),
    [(["-m", "gpt2", "--help"], 0.5), (["train_gpt2.py", "--help"], 1.0), (["fineweb.py", "--help"], 1.5)],
)
def test_help_answers_at_once(words, seconds):
    """Nothing that it needs imports torch."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        taken.append(time.perf_counter() - started)
    assert min(taken) < seconds, taken
