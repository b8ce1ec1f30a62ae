"""Build the site from the committed notebooks, without executing them and without a network.

python site/build_site.py                          writes build/site/index.html
REPOSITORY=owner/name python site/build_site.py    with links to Colab, Binder and GitHub
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from book.sources import ROOT, collect

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT))
from gpt2.system.errors import UserError, run_command
from gpt2.web.export import write_playground

NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme")


@dataclass(frozen=True)
class Options:
    """Build the site."""

    out: Path = ROOT / "build" / "site"
    """The folder of the finished site; two hidden folders beside it hold what Sphinx reads and keeps."""


def main() -> None:
    """Collect the pages and let Sphinx write them; every warning is an error. Raises UserError as `build`."""
    out = tyro.cli(Options, description=__doc__).out.resolve()
    status = build(out, os.environ.get("REPOSITORY", ""))
    if status:
        raise SystemExit(status)
    print(out / "index.html")


def build(out: Path, repository: str = "") -> int:
    """Build into the folder `out`, and return Sphinx's exit status.

    Raises UserError for a name that can't be one on GitHub, for a folder that can't be written, and without Sphinx.
    """
    if sys.version_info < (3, 11):
        raise UserError("the site needs Python 3.11 or newer; make clean, then make site PYTHON=python3.11")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} can't be imported; run `make site`, or pip install -e '.[site]'")
    from colab import require_repository  # needs nbformat, which comes with myst_nb
    from sphinx.cmd.build import build_main

    if repository:
        require_repository(repository, f"REPOSITORY={repository}")

    source, kept = out.parent / f".{out.name}-source", out.parent / f".{out.name}-doctrees"
    try:
        collect(source, repository)
        write_playground(out, ["novels"], lessons="./")
    except OSError as error:
        raise UserError(f"can't write to --out {out} ({error.strerror}); name another folder") from None
    words = ["--fail-on-warning", "--keep-going", "--quiet", "--jobs=auto", f"--define=book_repository={repository}"]
    folders = ["--doctree-dir", kept, "--conf-dir", ROOT / "site", source, out]
    return build_main([*words, *map(str, folders)])


if __name__ == "__main__":
    run_command(main)
