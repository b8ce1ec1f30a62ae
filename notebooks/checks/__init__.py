"""The common start of all notebooks, and the checkers for their exercises, one module per notebook.

A checker takes the reader's function and raises `Wrong` with a sentence that says what is wrong. `exercise` turns the
checker into one that prints this sentence, so that no solution can stop the notebook. `solved` ends a notebook: it says
which of its exercises are solved.
"""

import base64
import functools
import html
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1]
ROOT = NOTEBOOKS.parent
NEEDED = ("torch", "numpy", "matplotlib", "tiktoken")


def start(seed: int = 0) -> None:
    """Prepare a notebook: find `gpt2`, set the seeds, and set the style of the figures.

    Raises ModuleNotFoundError if a package is missing, with the command that installs it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} can't be imported by {sys.executable}; run `make lab` in {ROOT}, or there: "
            "pip install -e '.[offline]'"
        )
    if importlib.util.find_spec("gpt2") is None:
        print(f"gpt2 is not installed; it is imported from {ROOT}")
        sys.path.insert(0, str(ROOT))
        there = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, there))  # for the processes that notebooks start
    os.chdir(NOTEBOOKS)  # `../data` and `../runs` are relative to this folder
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm would like a widget for progress bars
    os.environ.setdefault("PYTHONUTF8", "1")  # the processes that notebooks start write UTF-8, on Windows too
    import numpy as np
    import torch

    from gpt2.logs.plot import style

    torch.manual_seed(seed)
    np.random.seed(seed)
    style()
    _show_figures_with_their_titles()


def _show_figures_with_their_titles() -> None:
    """Let the kernel show each figure of matplotlib as an image whose alternative text is `titles` of the figure."""
    if (shell := sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()) is None:
        return
    from IPython.core.pylabtools import print_figure
    from matplotlib.figure import Figure
    from matplotlib_inline.config import InlineBackend

    def image(figure: Figure) -> str:
        data = base64.b64encode(print_figure(figure, "png")).decode()
        return f'<img alt="{html.escape(titles(figure))}" src="data:image/png;base64,{data}">'

    InlineBackend.instance(parent=shell).figure_formats = set()
    shell.display_formatter.formatters["text/html"].for_type(Figure, image)


def titles(figure: Any) -> str:
    """The titles of a figure and its parts, which say what it shows, and the names of its axes."""
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        parts += [axis.get_title(loc) for loc in ("left", "center", "right")]
    found = list(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    names = [(" ".join(axis.get_xlabel().split()), " ".join(axis.get_ylabel().split())) for axis in figure.axes]
    axes = list(dict.fromkeys(f"{y} over {x}" for x, y in names if x and y))
    return ". ".join(part.rstrip(".") for part in [*found, *(["Axes: " + "; ".join(axes)] if axes else [])]) + "."


def __getattr__(name: str) -> Any:
    """Import the checkers of a notebook when they are first used: `checks.attention`."""
    if not (Path(__file__).parent / f"{name}.py").exists():
        raise AttributeError(f"no checkers called {name}")
    return importlib.import_module(f"checks.{name}")


class Wrong(Exception):
    """What is wrong with a solution, in a sentence for the reader who wrote it."""


_last_results: dict[str, str] = {}  # solved, open or wrong, per checker that was called


def exercise(check: Callable[..., None]) -> Callable[..., None]:
    """Print the result of `check`: right, not tried yet, wrong and why, or where the solution stopped."""

    @functools.wraps(check)
    def tell(solution: Any, *others: Any) -> None:
        _last_results[check.__name__] = "wrong"
        try:
            check(solution, *others)
        except NotImplementedError:
            _last_results[check.__name__] = "open"
            print("Your turn: replace `raise NotImplementedError`.")
        except Wrong as wrong:
            print(f"Not yet: {wrong}")
        except Exception as error:
            lines = traceback.extract_tb(error.__traceback__)
            own = [
                line for line in lines if line.line and not {"checks", "site-packages"} & set(Path(line.filename).parts)
            ]
            print(f"Not yet: it stopped with {type(error).__name__}: {error} (at `{(own or lines)[-1].line}`)")
        else:
            _last_results[check.__name__] = "solved"
            print("Right.")

    return tell


def solved() -> None:
    """Print which exercises of this notebook are solved, wrong and open, by what their checkers said last."""
    names = {kind: [name for name, found in _last_results.items() if found == kind] for kind in ("wrong", "open")}
    right = len(_last_results) - sum(map(len, names.values()))
    print(f"Solved: {right} of {len(_last_results)}.", end="")
    for kind, some in names.items():
        print(f" {kind.capitalize()}: {', '.join(some)}." if some else "", end="")
    print()


def expect(condition: Any, sentence: str) -> None:
    """Raise `Wrong(sentence)` unless `condition`."""
    if not bool(condition):
        raise Wrong(sentence)


def expect_equal(found: Any, wanted: Any, what: str, tolerance: float = 1e-5) -> None:
    """Raise `Wrong` unless `found` has the type, the shape and the values of `wanted`; numbers within `tolerance`."""
    import numpy as np
    import torch

    if found is None:
        raise Wrong(f"{what} is None; is there a `return`?")
    if isinstance(wanted, torch.Tensor):
        expect(isinstance(found, torch.Tensor), f"{what} should be a tensor, and is a {type(found).__name__}")
        expect(
            found.shape == wanted.shape,
            f"{what} has the shape {tuple(found.shape)}; it should be {tuple(wanted.shape)}",
        )
        found, wanted = (one.detach().cpu().double().numpy() for one in (found, wanted))
    if isinstance(wanted, float | int | np.ndarray):
        if np.allclose(found, wanted, atol=tolerance, rtol=tolerance, equal_nan=True):
            return
        if np.ndim(wanted):
            place = tuple(int(i) for i in np.argwhere(~np.isclose(found, wanted, atol=tolerance, rtol=tolerance))[0])
            raise Wrong(f"{what} at {list(place)} is {found[place]:.6g}; it should be {wanted[place]:.6g}")
        raise Wrong(f"{what} is {found:.6g}; it should be {wanted:.6g}")
    expect(found == wanted, f"{what} is {found!r}; it should be {wanted!r}")
