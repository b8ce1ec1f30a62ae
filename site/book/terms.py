"""Terms of the glossary: every one is an anchor there, and its first mention in a lesson shows the definition."""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

GLOSSARY = "glossary"
LESSON = re.compile(r"\d\d_\w+")
# words of everyday English, which a reader would not look up and which often mean something else
EVERYDAY = {"bias", "bit", "block", "bucket", "bytes", "exponent", "key", "leak", "score", "value", "weights"}
# where a link would disturb, or where the words are not prose
CLOSED = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


class Mention(nodes.Inline, nodes.TextElement):
    """A term in a text; its one child besides the words is the definition."""


class Definition(nodes.Inline, nodes.TextElement):
    """The definition that appears beside a mention. The class `no-search` keeps it out of the index of the search."""


def anchor(term: str) -> str:
    """The anchor of a term in the glossary."""
    return f"term-{nodes.make_id(term)}"


def entries(glossary: nodes.document) -> Iterator[tuple[str, nodes.list_item, list[nodes.Node]]]:
    """The terms of the glossary: each with its item of the list, and the nodes of its definition."""
    for item in glossary.findall(nodes.list_item):
        term = next(iter(item.findall(nodes.strong)), None)
        if term is not None and item.astext().startswith(f"{term.astext()} ("):
            yield term.astext(), item, definition(item[0])


def definition(paragraph: nodes.paragraph) -> list[nodes.Node]:
    """What follows "term (NN): " in an entry, with links replaced by their words."""
    start = next(i for i, node in enumerate(paragraph) if isinstance(node, nodes.Text) and node.startswith("):"))
    first = nodes.Text(paragraph[start].removeprefix("):").lstrip())
    found = nodes.inline("", "", first, *(node.deepcopy() for node in paragraph[start + 1 :]))
    for link in list(found.findall(lambda node: isinstance(node, nodes.reference) or node.tagname == "pending_xref")):
        link.parent.replace(link, nodes.Text(link.astext()))
    return found.children


def mark_entries(app: Sphinx, doctree: nodes.document) -> None:
    """Give every entry of the glossary its anchor. The lessons show its definitions, so they depend on it."""
    app.env.note_dependency(app.env.doc2path(GLOSSARY))
    if app.env.docname == GLOSSARY:
        for term, item, _ in entries(doctree):
            item["ids"].append(anchor(term))
            item["classes"].append("entry")


def link_mentions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the first mention of every term in a lesson to the glossary."""
    if not LESSON.fullmatch(docname):
        return
    known = {term: words for term, _, words in entries(app.env.get_doctree(GLOSSARY)) if term not in EVERYDAY}
    page = app.builder.get_relative_uri(docname, GLOSSARY)
    number = 0
    for text in list(prose(doctree)):
        pieces, rest = [], str(text)
        while match := first_mention(rest, known):
            term = as_listed(match[0], known)
            tip = Definition("", "", *known.pop(term), ids=[f"tip-{number}"], classes=["no-search"])
            mention = Mention("", "", tip, words=match[0], uri=f"{page}#{anchor(term)}", tip=f"tip-{number}")
            pieces += [nodes.Text(rest[: match.start()]), mention]
            rest, number = rest[match.end() :], number + 1
        if pieces:
            text.parent.replace(
                text, [piece for piece in [*pieces, nodes.Text(rest)] if piece.astext() or piece.children]
            )


def prose(doctree: nodes.document) -> Iterator[nodes.Text]:
    """The texts of a page that are sentences: not code, headings, links or outputs, and nothing that is folded."""
    folded = 0
    for node in doctree.findall(lambda node: isinstance(node, (nodes.raw, nodes.Text))):
        if isinstance(node, nodes.raw):
            folded += node.astext().count("<details") - node.astext().count("</details")
        elif not folded and is_open(node):
            yield node


def is_open(text: nodes.Text) -> bool:
    """Whether a text stands in a paragraph or a table, and in nothing where a link would disturb."""
    node, prose = text.parent, False
    while node is not None:
        if isinstance(node, CLOSED) or "cell_output" in node.get("classes", ()):
            return False
        prose = prose or isinstance(node, nodes.paragraph)
        node = node.parent
    return prose


def first_mention(text: str, terms: dict[str, list[nodes.Node]]) -> re.Match[str] | None:
    """The first place where a text has one of the terms, the longest where several begin."""
    if not terms:
        return None
    ordered = sorted(terms, key=len, reverse=True)
    return re.search(rf"(?<![\w-])(?:{'|'.join(map(pattern, ordered))})(?![\w-])", text)


def pattern(term: str) -> str:
    """A term with a capital or a small first letter, and with the plural's s."""
    first = term[0]
    small = term[1:] == term[1:].lower()
    letter = f"[{first.lower()}{first.upper()}]" if small and first.isalpha() else re.escape(first)
    plural = "" if term.endswith(("s", "warm-up")) else "(?:s|es)?"  # "two warm-ups" are exercises
    return letter + re.escape(term[1:]).replace(r"\ ", r"\s+") + plural


def as_listed(words: str, terms: dict[str, list[nodes.Node]]) -> str:
    """The term of the glossary that some words are a mention of."""
    return next(term for term in sorted(terms, key=len, reverse=True) if re.fullmatch(pattern(term), words))


def visit_mention(translator: HTML5Translator, node: Mention) -> None:
    """Write the link. The definition follows it, for CSS to show while the link is pointed at or has the focus."""
    words = translator.encode(node["words"])
    link = f'<a href="{node["uri"]}" aria-describedby="{node["tip"]}">{words}</a>'
    translator.body.append(f'<span class="term">{link}')


def visit_definition(translator: HTML5Translator, node: Definition) -> None:
    """Open the tooltip."""
    translator.body.append(f'<span class="definition" role="tooltip" id="{node["ids"][0]}">')


def close(translator: HTML5Translator, node: nodes.Node) -> None:
    """Close either of them."""
    translator.body.append("</span>")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the two nodes, and when they are made."""
    app.add_node(Mention, html=(visit_mention, close))
    app.add_node(Definition, html=(visit_definition, close))
    app.connect("doctree-read", mark_entries)
    app.connect("doctree-resolved", link_mentions)
    app.add_js_file("terms.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
