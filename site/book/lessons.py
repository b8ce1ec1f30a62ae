"""What a notebook gets on its way to a page: links, folded outputs, and the ways to run it."""

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from book.links import Links, address, in_cells
from book.sources import ROOT, lessons, pages

NAMES = re.compile(r"(?P<lesson>\d\d_\w+)(\.ipynb)?|(?P<file>gpt2/[\w/]+\.py|train_gpt2\.py|fineweb\.py)")
SHOW = "Show the output"


def prepare(app: Sphinx, docname: str, content: list[str]) -> None:
    """Rewrite the links of a notebook, and fold the outputs that readers should predict first."""
    if docname not in {path.stem for path in lessons()}:
        return
    notebook = json.loads(content[0])
    links = Links(ROOT, pages(), app.config.book_repository)
    in_cells(notebook, lambda text: links.rewrite(text, f"notebooks/{docname}.ipynb"))
    for cell in notebook["cells"]:
        if cell["metadata"].get("jupyter", {}).get("outputs_hidden"):
            cell["metadata"].setdefault("tags", []).append("hide-output")
            cell["metadata"]["mystnb"] = {"code_prompt_show": SHOW, "code_prompt_hide": "Hide the output"}
    content[0] = json.dumps(notebook)


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give the figures among the outputs of a notebook the alternative texts that their metadata holds."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    texts = [output["metadata"].get("image/png", {}).get("alt", "") for output in found]
    for figure, text in zip(doctree.findall(is_png_output), texts, strict=True):
        figure["alt"] = text


def is_png_output(node: nodes.Node) -> bool:
    """Whether a node is a picture among the formats of an output, of which MyST-NB shows one."""
    return isinstance(node, nodes.image) and node.parent.get("mime_type") == "image/png"


# lesson → the text, and the attention head, that the playground opens with
SHOWN_THERE = {"02_attention": "#text=The%20old%20man%20looked%20at&layer=0&head=3"}


def ways(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """The ways to run a lesson, each a text and an address."""
    found = []
    if repository := app.config.book_repository:
        colab = f"https://colab.research.google.com/github/{repository}/blob/colab/{docname}.ipynb"
        binder = f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{docname}.ipynb"
        found = [("Run on Colab", colab), ("Run on Binder", binder)]
    found.append(("Download the notebook", f"_sources/{docname}.ipynb"))
    found.append(("Playground", f"playground.html{SHOWN_THERE.get(docname, '')}"))
    if repository:
        found.append(("Source", address(repository, f"notebooks/{docname}.ipynb")))
    return found


def add_ways(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the ways to run a lesson below its title."""
    if docname not in {path.stem for path in lessons()}:
        return
    links = [
        f'<a href="{uri}"{" download" if uri.startswith("_sources") else ""}>{text}</a>'
        for text, uri in ways(app, docname)
    ]
    html = f'<p class="ways">{" ".join(links)}</p>'
    title = next(iter(doctree.findall(nodes.title)))
    title.parent.insert(1, nodes.raw("", html, format="html", classes=["no-search"]))


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the names of lessons and of modules that stand in backticks."""
    there = {path.stem for path in lessons()}
    for literal in list(doctree.findall(nodes.literal)):
        match = NAMES.fullmatch(literal.astext())
        if not match or is_in_link_or_title(literal) or match["lesson"] == docname:
            continue
        if match["lesson"] in there:
            uri = app.builder.get_relative_uri(docname, match["lesson"])
        elif match["file"] and (ROOT / match["file"]).exists():
            uri = module_uri(app, docname, match["file"])
        else:
            continue
        link = nodes.reference("", "", literal.deepcopy(), refuri=uri, internal=True)
        literal.parent.replace(literal, link)


def is_in_link_or_title(node: nodes.Node) -> bool:
    """Whether a node stands, at any depth, in a link or in a title."""
    return node is not None and (isinstance(node, (nodes.reference, nodes.title)) or is_in_link_or_title(node.parent))


def module_uri(app: Sphinx, docname: str, file: str) -> str:
    """The address of a module's documentation, as seen from a page."""
    name = file.removesuffix(".py").replace("/", ".")
    page, label, _ = app.env.domains.standard_domain.labels[name.lower()]
    return f"{app.builder.get_relative_uri(docname, page)}#{label}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the settings, and when pages are changed."""
    app.add_config_value("book_repository", "", "env")
    app.connect("source-read", prepare)
    app.connect("doctree-read", describe_figures)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", add_ways)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
