"""The folder that Sphinx reads, collected from the repository. The notebooks are copied as they are."""

import json
import shutil
from functools import partial
from pathlib import Path

from book import api
from book.links import Links, in_cells

ROOT = Path(__file__).resolve().parents[2]
# page → the document of the repository that it shows, where there is one
DOCUMENTS = {
    "notebooks": "notebooks/README.md",
    "glossary": "notebooks/glossary.md",
    "summary": "notebooks/summary.md",
    "repository": "README.md",
    "recipes": "scripts/README.md",
    "cloud": "scripts/cloud.md",
    "stories": "gpt2/data/README.md",
    "novels": "gpt2/formats/novels/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
# what the sidebar calls them, where the name of the page is not enough
SHORT = {
    "notebooks": "About the notebooks",
    "repository": "README",
    "cloud": "On rented machines",
    "novels": "The model novels",
}
REFERENCE = ("glossary", "summary", "api/index")


def lessons(root: Path = ROOT) -> list[Path]:
    """The notebooks, in order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def pages(root: Path = ROOT) -> dict[str, str]:
    """Every path in the repository that is a page of the site → the file of that page: `glossary.md`."""
    found = {path: f"{page}.md" for page, path in documents(root).items()}
    return found | {f"notebooks/{path.name}": path.name for path in lessons(root)}


def collect(source: Path, repository: str = "", root: Path = ROOT) -> None:
    """Fill the folder `source`; what has not changed keeps its time, so that Sphinx reads again only what has."""
    links = Links(root, pages(root), repository)
    wanted = {f"{page}.md": document(root / path, path, links) for page, path in documents(root).items()}
    wanted["index.md"] = front_page(root, links)
    wanted |= {f"api/{name}": text for name, text in api.pages(root).items()}
    for name, text in wanted.items():
        write(source / name, text)
    copies = {path.name: path for path in lessons(root)} | {
        f"files/{path}": root / path for path in linked(root, links)
    }
    for name, path in copies.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, source / name)
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source).as_posix() not in {*wanted, *copies}:
            path.unlink()


def documents(root: Path) -> dict[str, str]:
    """Page → document of the repository, for those that are there."""
    return {page: path for page, path in DOCUMENTS.items() if (root / path).exists()}


def linked(root: Path, links: Links) -> set[str]:
    """The files that documents and notebooks link to."""
    for path in lessons(root):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        in_cells(notebook, partial(links.rewrite, home=f"notebooks/{path.name}"))
    return links.files


def write(path: Path, text: str) -> None:
    """Write a text if the file holds another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def document(file: Path, path: str, links: Links) -> str:
    """A Markdown document of the repository, with the links of the site."""
    return links.rewrite(file.read_text(encoding="utf-8"), path)


def front_page(root: Path, links: Links) -> str:
    """The front page: `index.md`, with the reading paths and the list of lessons from notebooks/README.md."""
    text = (Path(__file__).resolve().parents[1] / "index.md").read_text(encoding="utf-8")
    index = (root / "notebooks/README.md").read_text(encoding="utf-8")
    drawing, _, rest = index[index.index("![") :].partition("\n\n")
    paths, _, table = rest.partition("\n\n")
    rows = [row.rpartition("|")[0].rpartition("|")[0] + "|" for row in table.strip().splitlines()]
    there = [page for page in documents(root) if page not in REFERENCE]
    parts = {
        "paths": links.rewrite(f"{drawing}\n\n{paths}", "notebooks/README.md"),
        "lessons": links.rewrite("\n".join(rows), "notebooks/README.md"),
        "lesson-pages": "\n".join(path.stem for path in lessons(root)),
        "reference-pages": "\n".join(REFERENCE),
        "repository-pages": "\n".join(f"{SHORT.get(page, page.capitalize())} <{page}>" for page in there),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text
