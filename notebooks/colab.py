"""Copies of the notebooks for Colab, where no repository lies beside a notebook.

    python notebooks/colab.py --repository owner/name            writes build/colab/
    python notebooks/colab.py --repository owner/name --out FOLDER

Each copy has one more cell, its first. Where the checkers can be imported, this cell does nothing. Elsewhere it clones
the repository from GitHub and installs it. Packages that are there already stay, unless they are older than
pyproject.toml allows. Colab's torch is among them: it is built for Colab's GPUs, and another one would be a download of
gigabytes. All others get the versions of constraints.txt.

The links of the copies are absolute, because Colab resolves no relative links. The copies lie on the branch `colab`.
"""

import posixpath
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import nbformat
import tyro
from contents import FOLDER, find, read
from nbformat import NotebookNode

sys.path.insert(0, str(FOLDER.parent / "site"))
sys.path.insert(0, str(FOLDER.parent))
from book.links import Links, in_cells

from gpt2.system.errors import UserError, run_command

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CELL = """\
# On Colab, this cell fetches and installs the repository. Where the repository is there, it does nothing.
# 07, 12 and 13 show more on a GPU: choose one with "Change runtime type" before you run this cell.
from importlib.util import find_spec

if find_spec("checks") is None:
    import importlib, os, re, subprocess, sys, tempfile
    from importlib.metadata import distributions, version
    from pathlib import Path

    folder = Path("{name}").resolve()
    print("The installation takes about a minute.")
    if not (folder / "constraints.txt").exists():
        source = ["--depth", "1", "--branch", "{branch}", "https://github.com/{repository}"]
        subprocess.run(["git", "clone", "--quiet", *source, str(folder)], check=True)
    there = {{re.sub("[-_.]+", "-", package.name).lower() for package in distributions()}}
    pins = (folder / "constraints.txt").read_text().splitlines()
    missing = Path(tempfile.mkdtemp()) / "constraints.txt"  # what is installed stays, such as the torch for this GPU
    missing.write_text("\\n".join(pin for pin in pins if pin.partition("==")[0] not in there))
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", str(folder), "-c", str(missing)]
    subprocess.run(install, check=True)
    os.chdir(folder / "notebooks")
    sys.path[:0] = [str(folder / "notebooks"), str(folder)]  # this process started before the installation
    importlib.invalidate_caches()
    print(f"{repository} is installed in {{folder}}, with torch {{version('torch')}}.")"""


@dataclass(frozen=True)
class Options:
    """Copy the notebooks for Colab."""

    repository: str
    """The repository on GitHub, as owner/name."""
    branch: Annotated[str, tyro.conf.arg(metavar="NAME")] = "main"
    """The branch that is cloned."""
    out: Path = FOLDER.parent / "build" / "colab"
    """The folder to write to. Copies that are there are replaced."""


def with_installation(notebook: NotebookNode, repository: str, branch: str) -> NotebookNode:
    """The notebook with a first cell that installs the repository where it is missing."""
    text = CELL.format(repository=repository, branch=branch, name=repository.partition("/")[2])
    notebook.cells.insert(0, nbformat.v4.new_code_cell(text, id="colab"))
    return notebook


class AbsoluteLinks(Links):
    """Links between notebooks lead to the copies on Colab, all others to files of a branch on GitHub."""

    def __init__(self, repository: str, branch: str):
        copies = f"https://colab.research.google.com/github/{repository}/blob/colab/"
        super().__init__(FOLDER.parent, {f"notebooks/{path.name}": copies + path.name for path in find()}, repository)
        self.branch = branch

    def link(self, match: re.Match[str], home: str) -> str:
        """One link, made absolute."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match["target"]))
        if not (self.root / path).exists():
            return match[0]
        target = self.pages.get(path) or f"https://github.com/{self.repository}/blob/{self.branch}/{path}"
        return f"{match['image']}[{match['text']}]({target}{match['anchor'] or ''})"


def require_repository(name: str, given: str) -> None:
    """Raise UserError for a name that can't be a repository's on GitHub; `given` says how the user gave it."""
    if not NAME.fullmatch(name):
        raise UserError(f"{given} is not a repository on GitHub; give owner/name")


def main() -> None:
    """Write the copies. Raises UserError for a name that can't be one on GitHub, and for a folder that won't do."""
    options = tyro.cli(Options, description=__doc__)
    require_repository(options.repository, f"--repository {options.repository}")
    if not re.fullmatch(r"\w[\w./-]*", options.branch):
        raise UserError(f"--branch {options.branch} is not the name of a branch; give one such as main")
    out = options.out.resolve()
    if out == FOLDER:
        raise UserError(f"--out {options.out} holds the notebooks themselves; give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write to --out {options.out} ({error.strerror}); give another folder") from None
    links = AbsoluteLinks(options.repository, options.branch)
    for path in find():
        notebook = with_installation(read(path), options.repository, options.branch)
        in_cells(notebook, partial(links.rewrite, home=f"notebooks/{path.name}"))
        nbformat.write(notebook, out / path.name)
    print(f"{len(find())} notebooks in {out}")


if __name__ == "__main__":
    run_command(main)
