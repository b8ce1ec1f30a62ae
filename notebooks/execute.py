"""Execute the notebooks, each in its own kernel, and record which code produced their outputs.

    python notebooks/execute.py                         all, in order, in place
    python notebooks/execute.py --stale                 those whose code has changed since
    python notebooks/execute.py 02 05                   these two
    python notebooks/execute.py --out FOLDER            write copies, and leave the notebooks unchanged

`metadata.executed` of a notebook holds a checksum of the code that it used. A notebook is stale when this code has
changed since.
"""

import ast
import base64
import hashlib
import html
import io
import itertools
import math
import platform
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nbformat
import tyro
from contents import FOLDER, code, find, imported, read
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

sys.path.insert(0, str(FOLDER.parent))
from gpt2.__main__ import COMMANDS
from gpt2.system.errors import UserError, run_command

ROOT = FOLDER.parent
PYTHON = ".".join(platform.python_version_tuple()[:2])
FIGURE = re.compile(r'<img alt="(?P<alt>[^"]*)" src="data:image/png;base64,(?P<png>[^"]*)">')
CELL_TIMEOUT = 900  # s; enough for a slow machine that runs other programs too


def checksum(notebook: NotebookNode) -> str:
    """A checksum of all code and results that a notebook uses, without comments and docstrings.

    This is the code of its own cells, its checkers and its diagrams, of the two scripts if it names them, of every
    module of this repository that any of these imports, directly or indirectly, and the results in `benchmarks/` that
    any of them names. The checksum depends on the version of Python.
    """
    cells = "\n".join(cell.source for cell in code(notebook))
    scripts = [ROOT / f"{name}.py" for name in ("train_gpt2", "fineweb") if name in cells]
    commands = [COMMANDS[name][0] for name in re.findall(r'"-m", "gpt2", "(\w+)"', cells)]
    modules = [*commands, "gpt2.__main__"] if commands else []
    files = {ROOT / f"{module.replace('.', '/')}.py" for module in modules} | imported(cells) | {*scripts}
    files |= {FOLDER / "checks" / f"{name}.py" for name in ["__init__", *re.findall(r"checks\.(\w+)\.", cells)]}
    files |= drawn(cells)
    waiting, texts = list(files), cells
    while waiting:
        text = waiting.pop().read_text(encoding="utf-8")
        more = imported(text) - files
        files |= more
        waiting += more
        texts += text
    parts = [cells, *(normal_form(path) for path in sorted(files))]
    parts += [path.read_text() for path in sorted((ROOT / "benchmarks").glob("*.json")) if path.name in texts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def drawn(cells: str) -> set[Path]:
    """The files of the diagrams that some cells draw, and of the grammar that all diagrams share."""
    names = set(re.findall(r"\bdiagrams\.(\w+)", cells))
    if not names:
        return set()
    defined = re.compile(rf"^def ({'|'.join(names)})\(", re.MULTILINE)
    files = [*(FOLDER / "diagrams").glob("*.py")]
    shared = {"drawing", "palette", "parts"}
    return {file for file in files if file.stem in names | shared or defined.search(file.read_text(encoding="utf-8"))}


def normal_form(path: Path) -> str:
    """The syntax tree of a file, without comments, docstrings and formatting."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            if isinstance(statements := getattr(node, name, None), list):
                kept = [each for each in statements if not _is_text(each)]
                setattr(node, name, kept)
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    expression = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(expression, ast.Constant) and isinstance(expression.value, str)


def is_stale(notebook: NotebookNode) -> bool:
    """Whether other code produced the outputs. False if another version of Python has executed the notebook."""
    record = notebook.metadata.get("executed")
    if not isinstance(record, dict):  # never executed
        return True
    return record["python"] == PYTHON and record["checksum"] != checksum(notebook)


def lighten(notebook: NotebookNode) -> None:
    """Store each figure as a PNG of 128 colours, with its alternative text in the metadata.

    The palette takes a third of the bytes, and shows no difference. A kernel shows a figure as HTML, because JupyterLab
    ignores this metadata; sites that clean HTML may remove an image from it, and a plain PNG is shown everywhere.
    """
    for output in (output for cell in code(notebook) for output in cell.outputs):
        if found := FIGURE.fullmatch(output.get("data", {}).get("text/html", "")):
            alt = html.unescape(found["alt"])
            del output["data"]["text/html"]
            output["data"] |= {"image/png": _with_palette(found["png"]), "text/plain": alt}
            output["metadata"] = {"image/png": {"alt": alt}}


def fold(notebook: NotebookNode) -> None:
    """Hide the output of the cell after a prediction, until the reader opens it."""
    for cell, after in itertools.pairwise(notebook.cells):
        if after.cell_type == "code":
            after.metadata.pop("jupyter", None)
            if cell.cell_type == "markdown" and "**Predict" in cell.source:
                after.metadata["jupyter"] = {"outputs_hidden": True}


def _with_palette(png: str) -> str:
    """A PNG in base64 → the same with a palette."""
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def execute(path: Path) -> tuple[NotebookNode, float]:
    """Return the notebook with new outputs, and the seconds that this took. Raises nbclient's CellExecutionError."""
    notebook = read(path)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    started = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    notebook.metadata.pop("language_info", None)
    lighten(notebook)
    fold(notebook)
    notebook.metadata["executed"] = {"checksum": checksum(notebook), "python": PYTHON}
    return notebook, time.perf_counter() - started


def resources() -> tuple[float, float]:
    """CPU seconds of all kernels so far and the processes they started, and the MiB of the largest; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan, math.nan
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


@dataclass(frozen=True)
class Options:
    """Execute notebooks."""

    notebooks: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The numbers of the notebooks, such as 02 [all]."""
    out: Path | None = None
    """The folder to write them to [in place]."""
    stale: bool = False
    """Only those whose code has changed since they were executed."""


def main() -> None:
    """Execute the notebooks of the command line. If one fails, print its cell and error, with exit status 1.

    Raises UserError for a number that no notebook has, and for a folder that can't be written.
    """
    options = tyro.cli(Options, description=__doc__)
    found = find(options.notebooks)
    if not found:
        raise UserError(f"no notebook's name begins with {' or '.join(options.notebooks)}; give numbers such as 02")
    folder = options.out or FOLDER
    try:  # before minutes are spent on what can't be written
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another folder with --out") from None
    for path in found:
        if options.stale and not is_stale(read(path)):
            continue
        try:
            notebook, seconds = execute(path)
        except CellExecutionError as error:
            raise SystemExit(f"{path.name}: {error}") from None
        nbformat.write(notebook, folder / path.name)
        size = (folder / path.name).stat().st_size / 1000
        cpu, largest = resources()
        used = f"CPU {cpu:.1f} s, {size:.0f} kB, largest process {largest:.0f} MiB"
        print(f"{path.name}: {seconds:.1f} s, {used}", flush=True)


if __name__ == "__main__":
    run_command(main)
