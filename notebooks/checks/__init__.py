"""The common start of all notebooks, and the checkers for their exercises, one module per notebook.

A checker takes the reader's function and raises `Wrong` with a sentence that says what is wrong. `exercise` turns the
checker into one that prints this sentence, so that no solution can stop the notebook.
"""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
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
    os.environ.setdefault("PYTHONUTF8", "1")  # the processes that notebooks start write UTF-8, on Windows too
    import numpy as np
    import torch

    from gpt2.logs.plot import style

    torch.manual_seed(seed)
    np.random.seed(seed)
    style()


def __getattr__(name: str) -> Any:
    """Import the checkers of a notebook when they are first used: `checks.attention`."""
    if not (Path(__file__).parent / f"{name}.py").exists():
        raise AttributeError(f"no checkers called {name}")
    return importlib.import_module(f"checks.{name}")


class Wrong(Exception):
    """What is wrong with a solution, in a sentence for the reader who wrote it."""


def exercise(check: Callable[..., None]) -> Callable[..., None]:
    """Print the result of `check`: right, not tried yet, wrong and why, or where the solution stopped."""

    @functools.wraps(check)
    def tell(solution: Any, *others: Any) -> None:
        try:
            check(solution, *others)
        except NotImplementedError:
            print("Your turn: replace `raise NotImplementedError`. The solution is folded below.")
        except Wrong as wrong:
            print(f"Not yet: {wrong}")
        except Exception as error:
            lines = traceback.extract_tb(error.__traceback__)
            own = [
                line for line in lines if line.line and not {"checks", "site-packages"} & set(Path(line.filename).parts)
            ]
            print(f"Not yet: it stopped with {type(error).__name__}: {error} (at `{(own or lines)[-1].line}`)")
        else:
            print("Right.")

    return tell


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
