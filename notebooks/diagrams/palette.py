"""The colours of the grammar, the fonts, and the widths of texts."""

from dataclasses import dataclass

SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','DejaVu Sans',sans-serif"
MONO = "ui-monospace,Menlo,Consolas,monospace"
WIDTH, MARGIN = 880, 24  # of every panel
LINE_HEIGHT = 1.35  # in font sizes
SMALLEST = 7.5  # of all font sizes, in pixels


@dataclass(frozen=True)
class Colour:
    """A colour of the grammar: of lines and heat maps, a light one for areas, and a dark one for text."""

    line: str
    fill: str
    text: str


INK, GREY, PAPER, BORDER = "#1F2933", "#5B6770", "#FBFCFD", "#D5DBE1"
MODULE = Colour("#7A8793", "#EDF0F3", INK)
PLAIN = Colour("#C3CAD1", "#FFFFFF", GREY)
MARK = Colour("#33414E", "#C7D1DB", INK)  # what a reader should look at
CONTRAST = Colour("#A89B00", "#FBF6BF", "#635B00")  # a second thing beside it
QUERY = Colour("#0072B2", "#D9EAF6", "#00568A")
KEY = Colour("#D55E00", "#FBE3D3", "#A34700")
VALUE = Colour("#009E73", "#D5F0E7", "#006B4D")
GRADIENT = Colour("#CC79A7", "#F7E4EF", "#963E6D")
COMMUNICATION = Colour("#E69F00", "#FCEFD0", "#855B00")
RESIDUAL = Colour("#56B4E9", "#DFF2FC", "#1B6A96")
COLOURS = {
    "module": MODULE,
    "plain": PLAIN,
    "mark": MARK,
    "contrast": CONTRAST,
    "query": QUERY,
    "key": KEY,
    "value": VALUE,
    "gradient": GRADIENT,
    "communication": COMMUNICATION,
    "residual": RESIDUAL,
}
PALETTE = {INK, GREY, PAPER, BORDER} | {shade for one in COLOURS.values() for shade in (one.line, one.fill, one.text)}
DARKEST = 0.55  # opacity of the strongest cell of a heat map, on which dark text can still be read

# widths of letters in font sizes, of DejaVu Sans, which is wider than the fonts of most systems
WIDTHS = (("ijlI'|", 0.29), (" .,:;!/", 0.34), ("ftr()[]-", 0.41), ("mwMW@%…—", 0.98), ("+=<>×→←↓↑−≥≤√≠≈⊕Σ", 0.84))


def text_width(text: str, size: float = 13, bold: bool = False, mono: bool = False) -> float:
    """An upper estimate of the width of a line of text in pixels."""
    if mono:
        return 0.61 * size * len(text)
    width = 0.0
    for letter in text:
        found = next((w for letters, w in WIDTHS if letter in letters), None)
        width += found or (0.76 if letter.isupper() else 0.64)
    return width * size * (1.1 if bold else 1)


def wrap(text: str, width: float, size: float = 13, bold: bool = False) -> list[str]:
    """The text in lines that are no wider than `width` pixels."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size, bold) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def shown(token: str | bytes) -> str:
    """A token as diagrams print it: ␣ for a space, ⏎ for a line break."""
    text = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
    return text.replace(" ", "␣").replace("\n", "⏎")


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign; −∞ and −0 are written properly."""
    if value == float("-inf"):
        return "−∞"
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text.replace("-", "−")
