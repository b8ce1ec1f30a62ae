"""Formulas as MathML, made when the site is built: a page needs no script and no font for them."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

# what docutils' converter does not know → what it knows
SYNONYMS = {r"\dots": r"\ldots", "≈": r"\approx "}
log = logging.getLogger(__name__)


def convert(formula: str, block: bool = False) -> str:
    """A formula in TeX → a `<math>` element. Raises docutils.utils.math.MathError for one that is not understood."""
    for unknown, known in SYNONYMS.items():
        formula = formula.replace(unknown, known)
    return tex2mathml(formula.strip(), as_block=block)


def write(translator: HTML5Translator, node: nodes.math | nodes.math_block, tag: str) -> None:
    """Write the formula of a node within a tag. A formula that can't be converted is a warning of the build."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = convert(node.astext(), block)
    except MathError as error:
        log.warning("the formula %r is not understood: %s", node.astext(), error, location=node, type="mathml")
        formula = translator.encode(node.astext())
    translator.body.append(translator.starttag(node, tag, "", CLASS="math") + formula + f"</{tag}>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name `mathml`."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda translator, node: write(translator, node, "span"), None),
        block_renderers=(lambda translator, node: write(translator, node, "div"), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
