"""`gpt2 playground`: a page on which a model runs in the browser, and shows what happens inside it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Le

from gpt2.system.errors import UserError
from gpt2.system.ranges import check_ranges
from gpt2.web.export import FOLDERS, export, settings, write_playground
from gpt2.web.server import Answer, serve


@dataclass(frozen=True)
class Options:
    """Open a model in the browser: its tokens, attention, residual stream, predictions and text."""

    run: Annotated[str, tyro.conf.Positional] = "novels"
    """Run folder, Hugging Face folder, .bin file of llm.c, a published name such as gpt2, or novels: a small model of
    English novels that comes with this package."""
    compare: str | None = None
    """A second model: its predictions and its text stand beside those of the first."""
    weights: Literal["int8", "fp32"] = "int8"
    """How the page keeps the weights. int8 takes a quarter of the memory."""
    out: Path | None = None
    """A folder for the page and its models, instead of serving them. Any web server can serve it."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """0: any that is free. Only this machine can connect."""


def main(options: Options) -> None:
    """Serve the page until Ctrl-C, or write it.

    Raises UserError for a model that the page can't run, and for a port in use.
    """
    check_ranges(options)
    runs = [options.run] if options.compare is None else [options.run, options.compare]
    if options.out is not None:
        try:
            write_playground(options.out, runs, options.weights)
        except OSError as error:
            raise UserError(f"can't write {options.out} ({error.strerror}); name another folder") from None
        print(options.out / "playground.html")
        return
    serve("playground.html", make_answers(runs, options.weights), options.port)


def make_answers(runs: list[str], weights: Literal["int8", "fp32"] = "int8") -> dict[str, Answer]:
    """What the server sends for the page's settings and for its models. Raises UserError as `export`."""
    answers: dict[str, Answer] = {"playground.json": lambda _: settings(len(runs))}
    for folder, run in zip(FOLDERS, runs, strict=False):
        for name, content in export(run, weights).files().items():
            answers[f"{folder}/{name}"] = partial(lambda content, _: content, content)
    return answers
