"""The notebooks as a reader gets them: they run, their outputs are of their code, and they teach all that is there."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

import checks
import contents
from contents import code, find, read
from execute import checksum

NOTEBOOKS = find()
SECONDS, ALL_SECONDS, KILOBYTES, MEBIBYTES, LINES = 75, 12 * 60, 500, 4096, 30
OFFLINE = {"HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
taken: dict[str, float] = {}  # notebook → seconds
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.mark.alone
@each
def test_it_runs_from_top_to_bottom_without_a_network(path, tmp_path):
    command = [sys.executable, "notebooks/execute.py", path.stem, "--out", tmp_path]
    for _ in range(2):  # once more where it took too long: something else may have run on this machine
        done = subprocess.run(command, cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        seconds, memory = re.search(r": ([\d.]+) s, .* process (\d+) MiB", done.stdout).groups()
        if float(seconds) < SECONDS:
            break
    assert float(seconds) < SECONDS and int(memory) < MEBIBYTES, done.stdout
    taken[path.stem] = float(seconds)
    fresh = read(tmp_path / path.name)
    assert not [cell.source for cell in code(fresh) if any(out.output_type == "error" for out in cell.outputs)]


@pytest.mark.alone
def test_all_together_take_less_than_twelve_minutes():
    if len(taken) < len(NOTEBOOKS):
        pytest.skip("not all have been run")
    assert sum(taken.values()) < ALL_SECONDS, taken


# as a sitecustomize module, it makes an editable installation of this repository invisible
HIDE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""
START = """
import checks, os, subprocess, sys
checks.start()
import gpt2
print(os.getcwd(), flush=True)
subprocess.run([sys.executable, "-c", "import gpt2; print(gpt2.__file__)"], check=True)
"""


def test_without_the_package_a_notebook_and_its_processes_use_the_repository(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'notebooks'}"}
    command = [sys.executable, "-c", START]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, folder, module = done.stdout.splitlines()
    assert said == f"gpt2 is not installed; it is imported from {ROOT}"
    assert (folder, module) == (str(ROOT / "notebooks"), str(ROOT / "gpt2" / "__init__.py"))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(checks, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package can't be imported by .*; run `make lab` in"):
        checks.start()


def test_a_wrong_number_is_refused():
    command = [sys.executable, "notebooks/execute.py", "99"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no notebook's name begins with 99" in done.stderr


@each
def test_its_outputs_are_of_its_code(path):
    """`make notebooks` mends it."""
    notebook = read(path)
    assert notebook.metadata["executed"] == checksum(notebook), f"{path.name} was changed after it was executed"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert path.stat().st_size < 1000 * KILOBYTES


@each
def test_it_keeps_the_form_of_a_lesson(path):
    """Title, promise, what to have read, figures, exercises with folded solutions, short cells, what comes next."""
    notebook = read(path)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert re.match(rf"# {path.stem[:2]} · \S.*\n\n\S", text[0]) and "**Before:**" in text[0] and "**Time:**" in text[0]
    assert "Predict" in "\n".join(text) and "## What you built" in text[-1]
    assert code(notebook)[0].source.startswith("import checks\n\nchecks.start()")
    assert not [cell.source for cell in code(notebook) if len(cell.source.splitlines()) > LINES]
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    exercises = [cell for cell in code(notebook) if "exercise" in cell.metadata.get("tags", [])]
    assert 2 <= len(exercises) <= 4 and all("raise NotImplementedError" in cell.source for cell in exercises)
    assert "\n".join(text).count("<details><summary>Solution</summary>") == len(exercises)
    shown = "\n".join(str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", "")) for out in outputs)
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|usr|Users)/", shown)


# why no notebook has to show it → module.name
NEEDS_NONE = {
    "a few lines that what is built there calls": (
        *(
            "checkpoint.random_states",
            "distributed.stop",
            "fit.setup_of",
            "run_folder.Beginning",
            "run_folder.decisive",
        ),
        *("flops.shapes", "flops.with_parts", "memory.is_fused", "plot.positions", "plot.short_names"),
        *("run_evaluation.is_due", "telemetry.describe_machine", "telemetry.layer_of", "logs.short_count"),
    ),
    "counts the parts of other architectures, which come later": (
        "flops.active_matrices",
        "flops.published_parameters",
    ),
    "the search for what fits a GPU's memory, which comes with the planner": (
        *("distributed.choose_micro_batch", "fit.find_micro_batch"),
        *("memory.activation_bytes", "memory.largest_micro_batch", "memory.Memory"),
    ),
    "a group of settings, which `--help` explains field by field": (
        "run.Eval",
        "run.Languini",
        "run.Log",
        "run.System",
    ),
    "keeps a run folder whole, which is proved by killing runs in the tests": (
        *("distributed.whole_model", "logs.cut_log", "run_folder.claim", "run_folder.empty"),
        *("run_evaluation.Evaluation", "run_evaluation.samples"),
    ),
    "reads the logs of other projects, a row each": ("log_formats.rows_of", "logs.Measured"),
    "hands numbers to other people's services and tools": (
        *("logs.Tracker", "telemetry.TensorBoard", "telemetry.WandB", "telemetry.check_trackers"),
        *("telemetry.gpu_state", "telemetry.layer_norms", "telemetry.open_trackers", "telemetry.peak_flops"),
    ),
}


def test_every_public_name_is_in_a_notebook_or_has_a_reason():
    assert len(NOTEBOOKS) == 13
    lessons = contents.lessons()
    missing = set()
    for module, names in contents.public_names().items():
        where = [lesson for lesson in lessons if module in lesson.modules or f"gpt2.{module}" in lesson.text]
        missing |= {f"{module}.{name}" for name in names if not any(lesson.mentions(name) for lesson in where)}
    unsaid = {path.stem for path in contents.PACKAGE.glob("[a-z]*.py") if "Built in:" not in path.read_text("utf-8")}
    assert unsaid == {"errors", "files", "machine"}, "a module says in which notebook it is built"
    assert missing == {name for names in NEEDS_NONE.values() for name in names}


def test_links_between_notebooks_lead_somewhere():
    for lesson in contents.lessons():
        for target in re.findall(r"\]\(([^)#]+)\)", lesson.text):
            if not target.startswith("http"):
                assert (lesson.path.parent / target).exists(), f"{lesson.path.name}: {target}"


def test_the_index_lists_the_notebooks_as_they_are():
    assert contents.table() in (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
