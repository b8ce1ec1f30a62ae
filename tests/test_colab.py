"""The copies of the notebooks for Colab: what their first cell does, and that nothing else differs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

import colab
from contents import find, read

from gpt2.system.errors import UserError

REPOSITORY = "someone/gpt2"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The notebooks for Colab."""
    monkeypatch.setattr(sys, "argv", ["colab.py", "--repository", REPOSITORY, "--out", str(tmp_path)])
    colab.main()
    return sorted(tmp_path.glob("*.ipynb"))


def test_a_copy_for_colab_differs_by_its_first_cell_alone(copies):
    assert [path.name for path in copies] == [path.name for path in find()]
    for copy, path in zip(copies, find(), strict=True):
        notebook = json.loads(copy.read_text(encoding="utf-8"))
        first = notebook["cells"].pop(0)
        assert first["id"] == "colab" and REPOSITORY in "".join(first["source"])
        assert notebook == json.loads(path.read_text(encoding="utf-8"))


def test_the_first_cell_does_nothing_where_the_checkers_are(copies, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **more: pytest.fail("it started a program"))
    path, folder = list(sys.path), os.getcwd()
    exec(read(copies[2]).cells[0].source, {})
    assert (sys.path, os.getcwd(), capsys.readouterr().out) == (path, folder, "")


def test_elsewhere_it_clones_installs_what_is_missing_and_keeps_what_is_there(copies, monkeypatch, tmp_path, capsys):
    commands, pins = [], []

    def run(command: list[str], check: bool) -> None:
        commands.append(command)
        assert check
        if command[0] == "git":
            (tmp_path / "gpt2" / "notebooks").mkdir(parents=True)
            (tmp_path / "gpt2" / "constraints.txt").write_text("# versions\ntorch==1.0\nnot-installed-here==2.0\n")
        else:
            pins.extend(Path(command[-1]).read_text().splitlines())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(read(copies[2]).cells[0].source, {})
    clone, install = commands
    source = ["--depth", "1", "--branch", "main", f"https://github.com/{REPOSITORY}"]
    assert clone == ["git", "clone", "--quiet", *source, str(tmp_path / "gpt2")]
    assert install[:-1] == [sys.executable, "-m", "pip", "install", "-q", "-e", f"{tmp_path / 'gpt2'}[offline]", "-c"]
    assert pins == ["# versions", "not-installed-here==2.0"]
    assert os.getcwd() == str(tmp_path / "gpt2" / "notebooks") and sys.path[0] == os.getcwd()
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--repository", "nonsense"], "give owner/name"),
        (["--repository", "a/b", "--branch", "x;rm"], "give one such as main"),
        (["--repository", "a/b", "--out", str(ROOT / "notebooks")], "give another folder"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(words, answer, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["colab.py", *words])
    with pytest.raises(UserError, match=answer):
        colab.main()
