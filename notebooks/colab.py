"""Copies of the notebooks for Colab, where no repository lies beside a notebook.

    python notebooks/colab.py --repository owner/name            writes build/colab/
    python notebooks/colab.py --repository owner/name --out FOLDER

Each copy has one more cell, its first. Where the checkers can be imported, this cell does nothing. Elsewhere it clones
the repository from GitHub and installs it. Packages that are there already stay, unless they are older than
pyproject.toml allows. Colab's torch is among them: it is built for Colab's GPUs, and another one would be a download of
gigabytes. All others get the versions of constraints.txt.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nbformat
import tyro
from contents import FOLDER, find, read
from nbformat import NotebookNode

sys.path.insert(0, str(FOLDER.parent))
from gpt2.system.errors import UserError, run_command

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CELL = """\
# On Colab, this cell fetches and installs the repository. Where the repository is there, it does nothing.
from importlib.util import find_spec

if find_spec("checks") is None:
    import importlib, os, re, subprocess, sys, tempfile
    from importlib.metadata import distributions, version
    from pathlib import Path

    folder = Path("{name}").resolve()
    if not folder.exists():
        source = ["--depth", "1", "--branch", "{branch}", "https://github.com/{repository}"]
        subprocess.run(["git", "clone", "--quiet", *source, str(folder)], check=True)
    there = {{re.sub("[-_.]+", "-", package.name).lower() for package in distributions()}}
    pins = (folder / "constraints.txt").read_text().splitlines()
    missing = Path(tempfile.mkdtemp()) / "constraints.txt"  # what is installed stays, such as the torch for this GPU
    missing.write_text("\\n".join(pin for pin in pins if pin.partition("==")[0] not in there))
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", f"{{folder}}[offline]", "-c", str(missing)]
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


def main() -> None:
    """Write the copies. Raises UserError for a name that can't be one on GitHub, and for the originals' folder."""
    options = tyro.cli(Options, description=__doc__)
    if not NAME.fullmatch(options.repository):
        raise UserError(f"--repository {options.repository} is not a repository on GitHub; give owner/name")
    if not re.fullmatch(r"\w[\w./-]*", options.branch):
        raise UserError(f"--branch {options.branch} is not the name of a branch; give one such as main")
    out = options.out.resolve()
    if out == FOLDER:
        raise UserError(f"--out {options.out} holds the notebooks themselves; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in find():
        nbformat.write(with_installation(read(path), options.repository, options.branch), out / path.name)
    print(f"{len(find())} notebooks in {out}")


if __name__ == "__main__":
    run_command(main)
