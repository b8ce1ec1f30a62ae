"""The notebooks as a reader gets them: they run, their outputs are current, and they cover all public names."""

import datetime
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

import checks
import classroom
import contents
import execute
import mutations
from contents import code, find, read
from execute import checksum, is_stale

from gpt2.system.errors import UserError

NOTEBOOKS = find()
CPU_SECONDS, KILOBYTES, MEBIBYTES, LINES = 400, 500, 4096, 30
OFFLINE = {"HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait for a core use no CPU time
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
STALE = [path for path in NOTEBOOKS if is_stale(read(path))]
DAY = datetime.date.today().toordinal()
CHOSEN = sorted({*STALE, NOTEBOOKS[2 * DAY % len(NOTEBOOKS)], NOTEBOOKS[(2 * DAY + 1) % len(NOTEBOOKS)]})


@pytest.mark.parametrize("path", CHOSEN, ids=[path.stem for path in CHOSEN])
def test_it_runs_from_top_to_bottom_without_a_network(path, tmp_path):
    """Stale notebooks, and two more that change every day; `make notebooks-test` executes all.

    The limit is for CPU time, because other tests run at the same time.
    """
    command = [sys.executable, "notebooks/execute.py", path.stem, "--out", tmp_path]
    environment = os.environ | OFFLINE | WAIT_ASLEEP
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds, memory = re.search(r"CPU ([\d.]+) s, .* process (\d+) MiB", done.stdout).groups()
    assert float(seconds) < CPU_SECONDS and int(memory) < MEBIBYTES, done.stdout
    fresh = read(tmp_path / path.name)
    assert not [cell.source for cell in code(fresh) if any(out.output_type == "error" for out in cell.outputs)]


def test_a_notebook_depends_on_the_diagrams_that_it_draws():
    cells = "\n".join(cell.source for cell in code(read(NOTEBOOKS[9])))
    assert {file.stem for file in execute.drawn(cells)} == {"text", "parallel", "drawing", "palette", "parts"}
    assert execute.drawn("import numpy") == set()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda text: f"{text}CHANGED = 1\n", False),
        (lambda text: f"{text}# a comment\n", True),
        (lambda text: text.replace('"""', '"""Other words. ', 1), True),
    ],
    ids=["code", "comment", "docstring"],
)
def test_a_checksum_sees_a_change_of_code_in_any_module_that_is_used(change, same, monkeypatch):
    """The module here is system/errors.py, which notebook 02 imports indirectly."""
    notebook, read_text = read(NOTEBOOKS[2]), Path.read_text
    before = checksum(notebook)

    def changed(path, **options):
        text = read_text(path, **options)
        return change(text) if path.name == "errors.py" else text

    monkeypatch.setattr(Path, "read_text", changed)
    assert (checksum(notebook) == before) == same


@pytest.mark.parametrize(
    ("number", "file"), [(18, "broken.py"), (18, "silent_bugs.json"), (17, "isoflop.py"), (16, "experiments.py")]
)
def test_a_checksum_sees_results_and_what_checkers_import(number, file, monkeypatch):
    notebook, read_text = read(NOTEBOOKS[number]), Path.read_text
    before = checksum(notebook)
    monkeypatch.setattr(
        Path, "read_text", lambda path, **options: read_text(path, **options) + "\nCHANGED = 1\n" * (path.name == file)
    )
    assert checksum(notebook) != before


def test_without_the_package_a_notebook_and_its_processes_use_the_repository(tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) if name != "gpt2" else None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.chdir(tmp_path)
    checks.start()
    assert capsys.readouterr().out == f"gpt2 is not installed; it is imported from {ROOT}\n"
    assert Path.cwd() == ROOT / "notebooks" and sys.path[0] == str(ROOT)
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}elsewhere"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(checks, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package can't be imported by .*; run `make lab` in"):
        checks.start()


def test_a_wrong_number_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["execute.py", "99"])
    with pytest.raises(UserError, match="no notebook's name begins with 99"):
        execute.main()


@each
def test_its_outputs_are_of_its_code(path):
    notebook = read(path)
    assert not is_stale(notebook), f"{path.name} uses code that has changed since it was executed; run make notebooks"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert path.stat().st_size < 1000 * KILOBYTES


@each
def test_it_keeps_the_form_of_a_lesson(path):
    """Title, promise, what to have read, figures, exercises with folded solutions, short cells, what comes next."""
    notebook = read(path)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert re.match(rf"# {path.stem[:2]} · \S.*\n\n\S", text[0]) and "**Before:**" in text[0] and "**Time:**" in text[0]
    assert "Predict" in "\n".join(text) and "## What you can do now" in text[-1]
    ends = ["Five facts to remember", "Further reading", "The next question"]
    assert [name for name in re.findall(r"^### (.+)$", text[-1], re.MULTILINE) if name in ends] == ends
    assert code(notebook)[0].source.startswith("import checks\n\nchecks.start()")
    assert not [cell.source for cell in code(notebook) if len(cell.source.splitlines()) > LINES]
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    exercises = [cell for cell in code(notebook) if "exercise" in cell.metadata.get("tags", [])]
    assert 2 <= len(exercises) <= 6 and all("raise NotImplementedError" in cell.source for cell in exercises)
    assert "\n".join(text).count("<details><summary>Solution</summary>") == len(exercises)
    shown = "\n".join(str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", "")) for out in outputs)
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|usr|Users)/", shown)


# why no notebook has to show it → module.name
NEEDS_NONE = {
    "a few lines that what is built there calls": (
        *("formats.build.build_from_tensors", "formats.build.trained_config", "formats.checkpoint.model_tensors"),
        "data.tokenizer.gpt2_merges",
        *("logs.plot.positions", "logs.plot.short_names", "logs.writer.short_count"),
        *("training.saving.random_states", "training.evaluation.is_due", "training.telemetry.describe_machine"),
        *("formats.checkpoint.ResumePoint", "system.devices.set_matmul_precision"),
        *("system.devices.set_attention_kernel", "kernels.autocast_enabled", "kernels.no_autocast"),
    ),
    "what train_gpt2.py calls before its loop, and names beside the notebooks that build its pieces": (
        *("training.setup.RunData", "training.setup.choose_config", "training.setup.make_model"),
        *("training.setup.open_data", "training.setup.open_log"),
        *("logs.writer.RunLog", "logs.writer.StepMetrics"),
    ),
    "opens other formats by name": (
        *("formats.huggingface.download", "formats.huggingface.read_config", "formats.huggingface.read_merges"),
        "formats.huggingface.read_json",
        *("formats.load.is_pretrained", "formats.load.encoding_of", "formats.build.require_gpt2"),
        *("formats.load.pretrained_config", "formats.checkpoint.read_config", "formats.checkpoint.read_model"),
    ),
    "a group of settings, which `--help` explains field by field": (
        *("config.run.Eval", "config.run.Log", "config.run.System"),
    ),
    "keeps a run folder whole, which is proved by killing runs in the tests": (
        *("logs.writer.truncate_log", "training.run_folder.export_model"),
        *("training.evaluation.Evaluation", "formats.checkpoint.read_record"),
        *("formats.checkpoint.remove_checkpoint", "formats.checkpoint.complete_checkpoint"),
    ),
    "calls another library": ("training.distributed.multiply_in_fp8", "kernels.onednn_linear"),
    "turns one setting into another": ("training.setup.epochs_as_steps",),
    "refuses settings that do not go together": ("training.execution.check_precision",),
    "reads the logs of other projects, one row each": (
        *("logs.formats.rows_of", "logs.formats.recognise", "logs.reader.log_of_rows"),
    ),
    "hands numbers to other people's services and tools": ("logs.writer.Tracker", "training.telemetry.gpu_state"),
}
# why no notebook builds it → modules
NO_LESSON = {
    "data, which the notebooks read line by line": ("config.presets",),
    "settings: declared, read from a command line, and refused": (
        *("config.checks", "config.command_line", "data.options", "system.errors", "system.ranges"),
    ),
    "files and services of other programs": (
        *("formats.convert", "formats.llmc", "formats.to_gguf", "formats.to_onnx", "logs.trackers"),
    ),
    "pages in a browser, which show what the lessons build": (
        *("web.export", "web.follow", "web.playground", "web.server", "web.watch"),
    ),
    "a command that compares files with their index": ("data.check",),
    "smaller weights for sampling, which notebook 04 uses": ("formats.packed",),
    "this machine and its disk": ("system.files", "system.machine"),
}


def test_every_public_name_is_in_a_notebook_or_has_a_reason():
    assert len(NOTEBOOKS) == 19
    lessons = contents.lessons()
    missing = set()
    for module, names in contents.public_names().items():
        where = [lesson for lesson in lessons if module in lesson.modules or f"gpt2.{module}" in lesson.text]
        missing |= {f"{module}.{name}" for name in names if not any(lesson.mentions(name) for lesson in where)}
    assert missing == {name for names in NEEDS_NONE.values() for name in names}
    without = {module for module, names in contents.public_names().items() if not names}
    assert without == {module for modules in NO_LESSON.values() for module in modules}


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: f"{mutation.notebook} {mutation.wrong}")
def test_a_mutation_changes_one_line_that_is_there(mutation):
    """`python notebooks/mutations.py` then checks, in half an hour, that the notebooks notice."""
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.right) == 1


def test_links_between_notebooks_lead_somewhere():
    for lesson in contents.lessons():
        for target in re.findall(r"\]\(([^)#]+)\)", lesson.text):
            if not target.startswith("http"):
                assert (lesson.path.parent / target).exists(), f"{lesson.path.name}: {target}"


def test_the_glossary_and_the_summary_are_those_of_the_notebooks(monkeypatch):
    for name, text in (("glossary", contents.glossary()), ("summary", contents.summary())):
        assert (ROOT / "notebooks" / f"{name}.md").read_text(encoding="utf-8") == text + "\n", "notebooks/contents.py"
    assert contents.summary().count("\n5. ") == len(NOTEBOOKS)  # five facts each
    monkeypatch.setitem(contents.TERMS, "00", "id, flux capacitor")
    with pytest.raises(KeyError, match="does not introduce flux capacitor in bold"):
        contents.glossary()


def test_every_entry_of_the_glossary_defines_its_term_by_itself():
    entries = re.findall(r"^- \*\*.*$", (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(entries) == len([term for terms in contents.TERMS.values() for term in terms.split(", ")])
    for entry in entries:
        term, sentence = re.fullmatch(r"- \*\*(.+?)\*\* \(\[\d\d\]\(.+?\)\): (.*)", entry).groups()
        assert sentence.endswith("."), entry
        assert len(sentence.split()) - len(term.split()) >= 6, entry
        assert not re.match(r"(This|It|That|Its|Such|These|They)\b", sentence), entry


def test_the_index_and_the_map_list_the_notebooks_as_they_are():
    index = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert contents.table() in index and contents.paths() in index
    assert (ROOT / "notebooks" / "prerequisites.svg").read_text(encoding="utf-8") == contents.prerequisites().svg
    maps = [out for cell in code(read(NOTEBOOKS[0])) for out in cell.outputs if "contents.table()" in cell.source]
    assert [out["data"]["text/markdown"] for out in maps] == [contents.table()], "run python notebooks/execute.py 00"


def running_text(lesson):
    """The text of a notebook without its list of aims, its exercises, headings, links, code and formulas."""
    cells = [cell.source for cell in read(lesson.path).cells[1:] if cell.cell_type == "markdown"]
    text = "\n\n".join(cells).split("## Your turn")[0]
    text = re.sub(r"<details><summary>Solution</summary>.*?</details>", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`\n]+`|\[[^\]\n]*\]\([^)\n]*\)|\$\$.*?\$\$|\$[^$\n]*\$", " · ", text, flags=re.DOTALL)
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def used_too_early(texts, terms):
    """(notebook, term) for each term that stands in a text before the place where it is bold; `terms` per notebook."""
    found = []
    for home, names in enumerate(terms):
        for term in names:
            own = re.split(rf"\*\*{re.escape(term)}\*\*", texts[home], maxsplit=1, flags=re.IGNORECASE)[0]
            for i, text in enumerate([*texts[:home], own]):
                if re.search(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", text, re.IGNORECASE):
                    found.append((i, term))
    return found


def test_no_term_is_used_before_it_is_introduced():
    """Notebook 00, which shows the reader round, may name what comes later."""
    texts = ["", *(running_text(lesson) for lesson in contents.lessons()[1:])]
    terms = [[], *([*contents.TERMS[path.name[:2]].split(", ")] for path in NOTEBOOKS[1:])]
    assert used_too_early(texts, terms) == []
    assert used_too_early(["a leak", "Leaks first, then a **leak**."], [[], ["leak"]]) == [(0, "leak"), (1, "leak")]
    assert used_too_early(["", "A **leak**. Leaks later."], [[], ["leak"]]) == []


def test_a_copy_for_a_class_has_the_stubs_and_no_solution_or_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classroom, "FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr(sys, "argv", ["classroom.py", "--out", str(tmp_path / "class")])
    for name in ("checks", "diagrams"):
        (tmp_path / "notebooks" / name).mkdir(parents=True)
    classroom.main()
    copies = sorted((tmp_path / "class").glob("*.ipynb"))
    assert [path.name for path in copies] == [path.name for path in NOTEBOOKS]
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        original, copied = read(path), read(copy)
        assert not [cell for cell in code(copied) if cell.outputs or cell.execution_count]
        assert [cell.source for cell in code(copied)] == [cell.source for cell in code(original)]
        text = "\n".join(cell.source for cell in copied.cells if cell.cell_type == "markdown")
        assert "<summary>Solution" not in text and text.count("<details>") == text.count("</details>")
    for number, solution in ((4, "def keep_top_p"), (13, "class Recomputed"), (13, "class ChunkedLoss")):
        cells = [cell for cell in code(read(copies[number])) if cell.metadata.get("jupyter", {}).get("source_hidden")]
        assert any(solution in cell.source for cell in cells)
    with pytest.raises(UserError, match="may hold a student's work"):
        classroom.main()
    monkeypatch.setattr(sys, "argv", ["classroom.py", "--out", str(tmp_path / "else" / "where")])
    with pytest.raises(UserError, match="is not a folder in"):
        classroom.main()


def test_every_picture_has_an_alternative_text_that_says_what_it_shows():
    for path in NOTEBOOKS:
        outputs = [out for cell in code(read(path)) for out in cell.outputs if "data" in out]
        figures = [out.metadata["image/png"]["alt"] for out in outputs if "image/png" in out.data]
        diagrams = re.findall(r'<img alt="([^"]*)"', "\n".join(out.data.get("text/html", "") for out in outputs))
        assert figures and diagrams
        assert all(len(alt) > 20 for alt in [*figures, *diagrams]), path.name


def test_the_output_that_answers_a_prediction_is_folded():
    for path in NOTEBOOKS:
        cells = read(path).cells
        for cell, after in itertools.pairwise(cells):
            asks = cell.cell_type == "markdown" and "**Predict" in cell.source and after.cell_type == "code"
            hidden = after.metadata.get("jupyter", {}).get("outputs_hidden", False)
            assert hidden == asks or after.cell_type != "code", f"{path.name}: {after.source[:60]}"


def test_every_notebook_ends_by_saying_which_of_its_exercises_are_solved():
    for path in NOTEBOOKS:
        sources = [cell.source for cell in code(read(path))]
        assert sources[-1] == "checks.solved()", path.name


def test_every_notebook_is_light():
    """About 300 lines of code that are not blank, the stubs of the exercises included."""
    for path in NOTEBOOKS:
        lines = [line for cell in code(read(path)) for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 320, f"{path.name}: {len(lines)}"
