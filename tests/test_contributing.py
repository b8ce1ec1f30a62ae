"""CONTRIBUTING.md is followed word by word in a copy of the repository; files for the hosting site name what exists."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from conftest import ROOT, Run

from gpt2.data.shards import write_shard
from gpt2.system.errors import UserError

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COPIED = ("gpt2", "tests", "notebooks", "benchmarks", "train_gpt2.py", "fineweb.py", "pyproject.toml")
BLOCK = r"\n\n```(\w+)\n(.*?)```"
EDIT = re.compile(rf"In `([^`]+)`, (above|below|replace) the line\s`([^`]+)`(?:, add| by):{BLOCK}", re.DOTALL)
CREATE = re.compile(rf"Create `([^`]+)`:{BLOCK}", re.DOTALL)
NOTEBOOK = re.compile(rf"Create `([^`]+)` in JupyterLab, with these cells:((?:{BLOCK})+)", re.DOTALL)


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The worked examples by their headings."""
    return dict(re.findall(r"^## (A \w+)\n(.*?)(?=^## A |\Z)", TEXT, re.DOTALL | re.MULTILINE))


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the repository, with shards where `make demo` puts them."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    folder = tmp_path / "data" / "stories-2048"
    folder.mkdir(parents=True)
    text = np.random.default_rng(0)
    for name, tokens in (("val_000000", 66_000), ("train_000001", 9_000)):
        write_shard(folder / f"{name}.npy", text.integers(0, 2048, tokens).astype(np.uint16))
    return tmp_path


def follow(section: str, root: Path) -> list[str]:
    """Change and create the files as the section says; return its commands."""
    for file, where, line, _, code in EDIT.findall(section):
        path = root / file
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [i for i, each in enumerate(lines) if each.strip() == line]
        assert len(found) == 1, f"{file} has this line {len(found)} times: {line}"
        i = found[0]
        lines[i : i + 1] = {"above": [code, lines[i]], "below": [lines[i], code], "replace": [code]}[where]
        path.write_text("".join(lines), encoding="utf-8")
    for file, _, code in CREATE.findall(section):
        (root / file).write_text(code, encoding="utf-8")
    for file, cells, *_ in NOTEBOOK.findall(section):
        new = {"markdown": nbformat.v4.new_markdown_cell, "python": nbformat.v4.new_code_cell}
        made = [new[kind](source.rstrip("\n")) for kind, source in re.findall(BLOCK, cells, re.DOTALL)]
        nbformat.write(nbformat.v4.new_notebook(cells=made), root / file)
    return [line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def run(command: str, root: Path) -> str:
    """Run a command of the document in the copy, and return what it prints."""
    program, *words = shlex.split(command)
    words = {"python": words, "gpt2": ["-m", "gpt2", *words]}[program]
    done = Run(*words, root=root, preloaded=("torch",)).wait()
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_instruction_of_the_document_is_followed(sections):
    """A sentence that the patterns above miss would be followed by nobody."""
    followed = [EDIT.findall(TEXT), CREATE.findall(TEXT), NOTEBOOK.findall(TEXT)]
    assert sum(map(len, followed)) == len(re.findall(r"^(?:In `|Create `)", TEXT, re.MULTILINE)) == 9
    assert list(sections) == ["A recipe", "A part", "A lesson"]


def test_a_new_recipe_can_be_planned_and_trained(sections, copy):
    said = [run(command, copy) for command in follow(sections["A recipe"], copy)]
    assert "4 passed" in said[0] and "1,315,968" in "".join(said[1:3])
    assert (copy / "runs" / "two-steps" / "DONE").exists()
    assert '"mlp": "swiglu"' in (copy / "runs" / "two-steps" / "config.json").read_text()


def test_a_new_part_is_tested_and_used(sections, copy):
    said = [run(command, copy) for command in follow(sections["A part"], copy)]
    assert "2 passed" in said[0]
    assert '"mlp": "relu"' in (copy / "runs" / "relu" / "config.json").read_text()
    assert (copy / "runs" / "relu" / "DONE").exists()


def test_a_new_lesson_is_executed_and_listed(sections, copy):
    for command in follow(sections["A lesson"], copy):
        run(command, copy)
    notebook = nbformat.read(copy / "notebooks" / "19_dropout.ipynb", as_version=4)
    printed = [out.text for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs if "text" in out]
    assert re.fullmatch(r"mean (?:1\.0[01]|0\.99)\d\n", printed[-1]), printed
    index = (copy / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert "| [19 · Dropout](19_dropout.ipynb) | Dropout sets activations to zero" in index
    assert "**inverted dropout** ([19]" in (copy / "notebooks" / "glossary.md").read_text(encoding="utf-8").lower()
    assert "19 · Dropout" in (copy / "notebooks" / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tool", "words", "says"),
    [
        ("execute", ["77"], "no notebook's name begins with 77"),
        ("execute", ["--out", "FILE"], r"can't write to .*FILE \(File exists\); name another folder with --out"),
        ("classroom", ["--out", "FILE"], r"can't write to .*FILE \(File exists\); name another folder with --out"),
    ],
)
def test_a_tool_of_the_notebooks_refuses_a_mistake_in_one_sentence(tool, words, says, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    module = importlib.import_module(tool)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "notebooks")  # beside which a class's folder has to lie
    monkeypatch.setattr(module, "find", lambda prefixes=(): [] if prefixes else [Path("none.ipynb")])
    (tmp_path / "FILE").touch()
    monkeypatch.setattr(sys, "argv", [tool, *(str(tmp_path / "FILE") if word == "FILE" else word for word in words)])
    with pytest.raises(UserError, match=says):
        module.main()


def test_the_index_is_written_only_by_a_command_line_without_flags(copy):
    index = copy / "notebooks" / "glossary.md"
    index.write_text("as it was")
    for words, status in ((["--help"], 0), (["--nonsense"], 2)):
        done = Run("notebooks/contents.py", *words, root=copy, preloaded=("torch",)).wait()
        assert done.returncode == status and index.read_text() == "as it was"


def test_the_room_in_the_drawings_is_as_said(monkeypatch):
    """A box in the right margin, or beyond it, is one too many."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    text, palette = (importlib.import_module(f"diagrams.{name}") for name in ("text", "palette"))
    right = palette.WIDTH - palette.MARGIN
    assert "room for six lessons after 12" in TEXT and "starts another row of boxes" in TEXT
    seven = {f"{number}": "a lesson" for number in range(13, 20)}
    names = dict.fromkeys(text.PLACES, "a lesson") | seven
    assert reach(text.prerequisites({key: [] for key in names}, names, {})) <= right
    monkeypatch.setattr(text, "FURTHER", dict(list(seven.items())[:6]))
    assert reach(text.pipeline()) <= right
    monkeypatch.setattr(text, "FURTHER", seven)
    assert reach(text.pipeline()) > right


def reach(drawing) -> float:
    """How far to the right the boxes of a drawing go."""
    boxes = re.findall(r'<rect x="([\d.]+)" y="\S+" width="([\d.]+)" height="\S+" rx="(?:8|5)"', drawing.svg)
    return max(float(x) + float(width) for x, width in boxes)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_and_scripts_that_exist(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"} and True in workflow  # YAML reads `on` as true
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"\bmake ([\w-]+)", "\n".join(commands)))
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert all((ROOT / name).exists() for name in re.findall(r"python (\S+\.py)", "\n".join(commands)))
    for job in workflow["jobs"].values():
        assert "needs" not in job or job["needs"] in workflow["jobs"]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_workflows_test_every_change_and_publish_what_they_build():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    test, book = ((ROOT / ".github" / "workflows" / f"{name}.yml").read_text() for name in ("test", "book"))
    events = yaml.safe_load(test)[True]
    assert set(events) == {"push", "pull_request"} and "run: make test " in test
    steps = yaml.safe_load(book)["jobs"]["build"]["steps"]
    uploads = [step["with"]["path"] for step in steps if "upload" in step.get("uses", "")]
    assert uploads == ["build/site", "build/colab"]


def test_the_forms_for_issues_ask_for_what_an_answer_needs():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for name, needed in (("bug", {"seen", "command", "header", "versions"}), ("lesson", {"lesson", "question"})):
        form = yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        assert needed <= {field["id"] for field in form["body"]}
        kinds = {"input", "textarea", "dropdown"}
        assert all(field["type"] in kinds and field["attributes"]["label"] for field in form["body"])


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (
        citation["version"] == VERSION
        and citation["license"] == "MIT"
        and f'license = "{citation["license"]}"' in PROJECT
    )
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)[1] == VERSION
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
