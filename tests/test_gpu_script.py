"""`benchmarks/gpu.sh`, rehearsed without a GPU: parts end, are skipped, stop after their time, and fill one table."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the script, whose training run has one second."""
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert script.count("part train 400 ") == 1
    for name, content in {
        "benchmarks/gpu.sh": script.replace("part train 400 ", "part train 1 "),
        "tests/test_with.py": "@pytest.mark.gpu\n",
        "tests/test_without.py": "import nbformat\n",
        "broken": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def call(repository: Path, *words: str, flags: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script on a machine whose python3 and nvidia-smi are those of `gpu_machine`."""
    path = f"{ROOT / 'tests' / 'gpu_machine'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "REAL_PYTHON": sys.executable, "REAL_FLAGS": flags}
    command = ["bash", "benchmarks/gpu.sh", *words]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=60)


def calls(repository: Path) -> list[str]:
    """The Python files and modules that were run since the last question."""
    lines = (repository / "calls.txt").read_text().splitlines()
    (repository / "calls.txt").unlink()
    return [line.split()[1 if line.startswith("-m") else 0] for line in lines]


def test_the_first_call_runs_all_and_the_second_what_failed(repository):
    first = call(repository)
    assert first.returncode == 1, first.stdout + first.stderr
    selected = (repository / "calls.txt").read_text()
    assert "tests/test_with.py" in selected and "tests/test_without.py" not in selected
    assert calls(repository) == ["fineweb.py", "train_gpt2.py", "benchmarks/ladder.py", "pytest"]
    assert "FAILED with exit status 1" in first.stdout
    (repository / "broken").unlink()
    second = call(repository)
    assert second.returncode == 0 and "FAILED" not in second.stdout
    assert calls(repository) == ["pytest"]


def test_the_table_and_the_json_have_the_same_numbers(repository):
    printed = call(repository).stdout.split("== summary")[1]
    rows = json.loads((repository / "runs" / "gpu" / "summary.json").read_text())
    assert [row["part"] for row in rows] == ["machine", "tokens", *["train"] * 4, *["ladder"] * 3, *["tests"] * 2]
    assert rows[0]["what"] == "torch 2.11.0+cu130 Python 3.12.3, NVIDIA H100 80GB HBM3, 580.65.06"
    assert rows[2]["what"] == "stopped after its time, 1 s"  # it was asked to stop, saved, and ended well
    speed = {"ms/step": 1000.0, "tokens/s": 524_288, "MFU %": 45.2, "peak TFLOP/s": 989.0}
    assert rows[3] == {"part": "train", "what": "median of 3 steps", **speed}
    assert rows[4] == {"part": "train", "what": "training loss", "first": 10.97, "last": 8.25}
    assert rows[8] == {
        **{"part": "ladder", "what": "+ larger micro-batch", "batch": 64.0, "ms/step": 130.0},
        **{"tokens/s": 504_123.0, "MFU % measured": 61.6},
    }
    assert rows[10] == {"part": "tests", "what": "GPU tests", "failed": 1, "passed": 23}
    for row in rows:
        numbers = "  ".join(f"{name} {value:,}" for name, value in row.items() if name not in ("part", "what"))
        lines = [line for line in printed.split("\n") if line.startswith(row["part"]) and row["what"] in line]
        assert any(line.endswith(numbers) for line in lines)


def test_the_guide_installs_what_the_script_needs():
    guide = (ROOT / "scripts" / "cloud.md").read_text()
    line = next(line for line in guide.splitlines() if line.startswith("uv sync"))
    assert guide.index(line) < guide.index("bash benchmarks/gpu.sh")
    extras = set(re.findall(r"--extra (\w+)", line))
    assert {"gpu", "dev"} <= extras, "dev has pytest"
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras)


def test_what_cannot_run_is_refused_in_one_sentence(repository):
    bare = call(repository, "train", flags="-S -E")
    assert bare.returncode == 2 and bare.stderr.count("\n") == 1
    assert "python3 -m pip install torch numpy tyro" in bare.stderr
    assert "pytest" not in bare.stderr and " pytest" in call(repository, "tests", flags="-S -E").stderr
    assert "can't read plot" in call(repository, "plot").stderr
