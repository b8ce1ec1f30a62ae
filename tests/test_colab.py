"""The copies of the notebooks for Colab: what their first cell does, and that nothing else differs."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT / "site"))

import colab
from book.links import in_cells
from contents import find, read

from gpt2.system.errors import UserError

REPOSITORY = "someone/gpt2"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The notebooks for Colab."""
    monkeypatch.setattr(sys, "argv", ["colab.py", "--repository", REPOSITORY, "--out", str(tmp_path)])
    colab.main()
    return sorted(tmp_path.glob("*.ipynb"))


def test_a_copy_for_colab_differs_by_its_first_cell_and_its_links_alone(copies):
    assert [path.name for path in copies] == [path.name for path in find()]
    for copy, path in zip(copies, find(), strict=True):
        notebook, original = (json.loads(each.read_text(encoding="utf-8")) for each in (copy, path))
        first = notebook["cells"].pop(0)
        assert first["id"] == "colab" and REPOSITORY in "".join(first["source"])
        for each in (notebook, original):
            in_cells(each, lambda text: LINK.sub(r"[\1]", text).splitlines(keepends=True))
        assert notebook == original


LINK = re.compile(r"\[([^\]]*)\]\([^)\s]+\)")
ON_GITHUB = f"https://github.com/{REPOSITORY}/blob/main/"
ON_COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/colab/"


def test_every_link_of_a_copy_is_absolute_and_leads_to_a_file_or_to_another_copy(copies):
    names, targets = {path.name for path in copies}, []
    for path in copies:
        in_cells(read(path), lambda text: targets.extend(re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)) or text)
    assert [target for target in targets if not re.match(r"https?://", target)] == []
    files = {target.removeprefix(ON_GITHUB) for target in targets if target.startswith(ON_GITHUB)}
    assert {"README.md", "gpt2/model.py"} <= files and all((ROOT / file).exists() for file in files)
    assert {target.removeprefix(ON_COLAB) for target in targets if target.startswith(ON_COLAB)} == names


def test_links_keep_their_anchors_and_code_stays_as_it_is():
    absolute = partial(colab.AbsoluteLinks(REPOSITORY, "dev").rewrite, home="notebooks/01_tokens.ipynb")
    assert absolute("[a](02_attention.ipynb#why)") == f"[a]({ON_COLAB}02_attention.ipynb#why)"
    assert absolute("[`b`](../README.md)") == f"[`b`]({ON_GITHUB}README.md)".replace("main", "dev")
    for same in ("[c](#why)", "[d](https://example.org)", "`[e](../README.md)`", "`h[0](x)`"):
        assert absolute(same) == same


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
    assert install[:-1] == [sys.executable, "-m", "pip", "install", "-q", "-e", str(tmp_path / "gpt2"), "-c"]
    assert pins == ["# versions", "not-installed-here==2.0"]
    assert os.getcwd() == str(tmp_path / "gpt2" / "notebooks") and sys.path[0] == os.getcwd()
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--repository", "nonsense"], "give owner/name"),
        (["--repository", "a/b", "--branch", "x;rm"], "give one such as main"),
        (["--repository", "a/b", "--out", str(ROOT / "notebooks")], "give another folder"),
        (["--repository", "a/b", "--out", str(ROOT / "README.md")], "File exists.*give another folder"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(words, answer, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["colab.py", *words])
    with pytest.raises(UserError, match=answer):
        colab.main()
