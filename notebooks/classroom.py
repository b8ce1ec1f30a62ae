"""Copies of the notebooks for a class: without outputs and without the solutions of the exercises.

    python notebooks/classroom.py               writes classroom/ beside notebooks/
    python notebooks/classroom.py --out FOLDER

The copies have the checkers with them, and use `gpt2/` of the repository. Where a notebook goes on with the solution of
a stub, the cell with it is folded: it defines the name of a stub, or has the tag `solution`. A file that is already in
the folder is not overwritten: it may be a student's work.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import tyro
from contents import FOLDER, code, find, read
from nbformat import NotebookNode

sys.path.insert(0, str(FOLDER.parent))
from gpt2.system.errors import UserError, run_command

SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>\n*", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """Copy the notebooks for a class."""

    out: Path = FOLDER.parent / "classroom"
    """The folder to write to; it has to lie in the repository."""


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook without outputs, without folded solutions, and with the cells folded that repeat one."""
    stubs: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
        cell.metadata.pop("jupyter", None)
        names = set(re.findall(r"^(?:def|class) (\w+)", cell.source, re.MULTILINE))
        if "raise NotImplementedError" in cell.source:
            stubs |= names
        elif stubs & names or "solution" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    notebook.metadata.pop("executed", None)
    return notebook


def main() -> None:
    """Write the copies. Raises UserError if one is there already, or if the folder can't be written."""
    out = tyro.cli(Options, description=__doc__).out.resolve()
    if out.parent != FOLDER.parent:
        raise UserError(f"--out {out} is not a folder in {FOLDER.parent}; the notebooks look for gpt2/ beside theirs")
    if there := sorted(out.glob("*.ipynb")):
        raise UserError(f"{there[0]} exists and may hold a student's work; give another folder with --out")
    try:
        out.mkdir(exist_ok=True)
        for folder in ("checks", "diagrams"):
            shutil.copytree(FOLDER / folder, out / folder, dirs_exist_ok=True)
        for path in find():
            nbformat.write(without_solutions(read(path)), out / path.name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't write to {out} ({reason}); name another folder with --out") from None
    print(f"{len(find())} notebooks in {out}")


if __name__ == "__main__":
    run_command(main)
