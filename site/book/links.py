"""Links between files of the repository become links between pages of the site."""

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!\w+:|#|/)[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(```.*?```|``.*?``|`[^`\n]*`)", re.DOTALL)
PICTURES = (".png", ".svg", ".jpg")


class Links:
    """Rewrites the relative links of a Markdown text.

    `root` is the repository, `pages` maps a path in it to the name of its page, and `repository` is `owner/name` on
    GitHub, or empty.
    """

    def __init__(self, root: Path, pages: Mapping[str, str], repository: str = ""):
        self.root, self.pages, self.repository = root, pages, repository
        self.files: set[str] = set()  # the pictures and files that were linked: they come along

    def rewrite(self, text: str, home: str) -> str:
        """The text of the file `home` (a path in the repository), with links for the site. Code stays as it is."""

        code = [match.span() for match in CODE.finditer(text)]

        def change(match: re.Match[str]) -> str:
            in_code = any(start <= match.start() < stop for start, stop in code)
            return match[0] if in_code else self.link(match, home)

        return LINK.sub(change, text)

    def link(self, match: re.Match[str], home: str) -> str:
        """One link, for the site: to a page, to a module's documentation, or to a file that comes along."""
        label, anchor = match["text"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match["target"]))
        if not (self.root / path).exists():
            return match[0]
        page = self.pages.get(path) or self.pages.get(f"{path}/README.md")
        if page:
            return f"[{label}]({page}{anchor})"
        if documented(self.root / path, path):
            return f"[{label}](#{module(path)})"
        if (self.root / path).is_file() and (self.root / path).stat().st_size < 1_000_000:
            self.files.add(path)
            return f"{match['image']}[{label}](files/{path})"
        return f"[{label}]({address(self.repository, path)})" if self.repository else label


def module(path: str) -> str:
    """The name of the module in a file: `gpt2/data/loader.py` → `gpt2.data.loader`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def documented(file: Path, path: str) -> bool:
    """Whether a file or folder of the repository is a module or a package that the reference has."""
    if file.is_dir():
        return path.startswith("gpt2/") and (file / "__init__.py").exists()
    return path.endswith(".py") and path.startswith(("gpt2/", "train_gpt2", "fineweb"))


def address(repository: str, path: str) -> str:
    """Where a file or folder of the repository stands on GitHub."""
    return f"https://github.com/{repository}/blob/main/{path}"


def in_cells(notebook: dict, change: Callable[[str], str]) -> None:
    """Change the Markdown cells and the Markdown outputs of a notebook in place."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = change("".join(cell["source"]))
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = change("".join(output["data"]["text/markdown"]))
