"""Execute the notebooks, each in a kernel of its own, and note which code their outputs are of.

    python notebooks/execute.py                         all, in order, in place
    python notebooks/execute.py 02 05                   these
    python notebooks/execute.py --out FOLDER            leave the notebooks as they are, and write copies

An output is stale when the notebook's code is no longer the code that made it: `metadata.executed` has its checksum.
"""

import base64
import hashlib
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nbformat
import tyro
from contents import FOLDER, code, find, read
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

CELL_TIMEOUT = 300  # s


def checksum(notebook: NotebookNode) -> str:
    """Of all its code."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()[:16]


def lighten(notebook: NotebookNode) -> None:
    """Store its figures with a palette of 128 colours: a third of the bytes, and no difference to be seen."""
    for output in (output for cell in code(notebook) for output in cell.outputs):
        if png := output.get("data", {}).get("image/png"):
            small = io.BytesIO()
            picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            picture.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def execute(path: Path) -> tuple[NotebookNode, float]:
    """The notebook with fresh outputs, and the seconds they took. Raises nbclient's CellExecutionError."""
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
    notebook.metadata["executed"] = checksum(notebook)
    return notebook, time.perf_counter() - started


def largest_process() -> float:
    """MiB of the largest process of all kernels so far, and of those that they started; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


@dataclass(frozen=True)
class Options:
    """Execute notebooks."""

    notebooks: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Beginnings of their names [all]."""
    out: Path | None = None
    """Where to write them [in place]."""


def main() -> None:
    """Execute the notebooks of the command line; exit status 1, with the cell and its error, where one fails."""
    options = tyro.cli(Options, description=__doc__)
    found = find(options.notebooks)
    if not found:
        raise SystemExit(f"no notebook's name begins with {' or '.join(options.notebooks)}; give numbers such as 02")
    folder = options.out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        try:
            notebook, seconds = execute(path)
        except CellExecutionError as error:
            raise SystemExit(f"{path.name}: {error}") from None
        nbformat.write(notebook, folder / path.name)
        size = (folder / path.name).stat().st_size / 1000
        largest = f"largest process {largest_process():.0f} MiB"
        print(f"{path.name}: {seconds:.1f} s, {size:.0f} kB, {largest}", flush=True)


if __name__ == "__main__":
    main()
