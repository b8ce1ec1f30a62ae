"""The drawing core: one visual grammar for every diagram of the suite, written as SVG with the standard library.

The grammar. A rounded box is a module, an arrow is data that moves, and the shape of the data is written on the arrow.
Queries, keys, values, gradients, communication and the residual stream have one colour each, from the palette of Okabe
and Ito, whose colours differ for colour-blind readers too.

Light and dark themes. A diagram stands on a light panel of its own, with a border, and all of its text is dark. So it
looks the same on every page. A `<style>` with `prefers-color-scheme` would follow the operating system instead of
JupyterLab's theme, and some sites remove it. There are no ids either, so several diagrams on a page can't disturb each
other, and the same input always gives the same bytes.
"""

import base64
import copy
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .palette import (
    BORDER,
    GREY,
    INK,
    LINE_HEIGHT,
    MARGIN,
    MODULE,
    MONO,
    PAPER,
    PLAIN,
    RESIDUAL,
    SANS,
    SMALLEST,
    WIDTH,
    Colour,
    text_width,
    wrap,
)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Diagram:
    """A finished drawing: its SVG, its finding in a sentence, and a description for readers who can't see it.

    A notebook shows it as an image with an alternative text. JupyterLab shows no SVG of a notebook that it doesn't
    trust, as after a download, but it does show an image.
    """

    svg: str
    title: str
    description: str

    def __repr__(self) -> str:
        return f"{self.title} {self.description}"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        alt = html.escape(f"{self.title} {self.description}")
        return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}" style="max-width:100%">'

    def save(self, path: str | Path) -> None:
        """Write the SVG to a file."""
        Path(path).write_text(self.svg, encoding="utf-8")


class Canvas:
    """A panel to draw on. Coordinates are in pixels from the left margin, and from below the title."""

    def __init__(self, title: str, description: str, width: int = WIDTH) -> None:
        self.title, self.description, self.width = title, description, width
        self.inner = width - 2 * MARGIN
        self._parts: list[str] = []
        self._reach = [0.0]  # the lowest point drawn so far; views share it
        self._x, self._y = float(MARGIN), float(MARGIN)
        for line in wrap(title, self.inner, 16, bold=True):
            self.text(0, 8, line, size=16, bold=True, anchor="start")
            self._y += 16 * LINE_HEIGHT
        self._y += 14

    def at(self, x: float, y: float) -> "Canvas":
        """A view of the same panel whose origin lies at (x, y)."""
        view = copy.copy(self)
        view._x, view._y = self._x + x, self._y + y
        return view

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        colour: Colour = MODULE,
        *,
        opacity: float | None = None,
        radius: float = 3,
        dashed: bool = False,
        strong: bool = False,
        border: bool = True,
    ) -> None:
        """A rectangle. With `opacity`, it is filled with the line colour at this opacity, as in a heat map."""
        fill = f'fill="{colour.fill}"' if opacity is None else f'fill="{colour.line}" fill-opacity="{opacity:.2f}"'
        line = f' stroke="{colour.line}" stroke-width="{2 if strong else 1}"' if border else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        place = f'x="{_n(self._x + x)}" y="{_n(self._y + y)}" width="{_n(w)}" height="{_n(h)}" rx="{_n(radius)}"'
        self._add(f"<rect {place} {fill}{line}{dash}/>", y + h)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
        colour: str = INK,
    ) -> None:
        """A line of text, with its middle at height y."""
        look = f' font-size="{_n(size)}"' if size != 13 else ""
        look += f' fill="{colour}"' if colour != INK else ""
        look += f' text-anchor="{anchor}"' if anchor != "middle" else ""
        look += ' font-weight="600"' if bold else ""
        look += f' font-family="{MONO}"' if mono else ""
        place = f'x="{_n(self._x + x)}" y="{_n(self._y + y + 0.35 * size)}"'
        self._add(f"<text {place}{look}>{html.escape(text, quote=False)}</text>", y + size / 2)

    def letters(self, places: Sequence[float], y: float, text: str, size: float = 13) -> None:
        """A line of monospaced text whose letters stand at these places."""
        xs = " ".join(_n(self._x + x) for x in places)
        look = f'font-size="{_n(size)}" font-family="{MONO}"'
        place = f'x="{xs}" y="{_n(self._y + y + 0.35 * size)}"'
        self._add(f"<text {place} {look}>{html.escape(text, quote=False)}</text>", y + size / 2)

    def tiles(self, places: Iterable[tuple[float, float, float, float]], colour: Colour) -> None:
        """Many rectangles (x, y, width, height) of one colour, in a single path."""
        places = list(places)
        if not places:
            return
        steps = "".join(f"M{_n(self._x + x)} {_n(self._y + y)}h{_n(w)}v{_n(h)}h{_n(-w)}z" for x, y, w, h in places)
        look = f'fill="{colour.fill}" stroke="{colour.line}" stroke-linejoin="round"'
        self._add(f'<path d="{steps}" {look}/>', max(y + h for _, y, _, h in places))

    def lines(self, x: float, y: float, text: str, width: float, size: float = 12) -> None:
        """A paragraph from (x, y) downwards, at most `width` wide."""
        for i, line in enumerate(wrap(text, width, size)):
            self.text(x, y + i * size * LINE_HEIGHT, line, size=size, anchor="start", colour=GREY)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        label: str,
        colour: Colour = MODULE,
        *,
        note: str = "",
        strong: bool = False,
        bold: bool = True,
        mono: bool = False,
        size: float = 13,
    ) -> None:
        """A module: a rounded box with a label, and a note in smaller type below it. Both may have several lines.

        A long label is set in smaller type. Raises ValueError if the text does not fit all the same.
        """
        widest = max(text_width(line, 1, bold, mono) for line in label.split("\n"))
        size = min(size, (w - 6) / widest)
        rows = [(line, size, bold) for line in label.split("\n")]
        rows += [(line, 11, False) for line in note.split("\n") if line]
        height = sum(points * LINE_HEIGHT for _, points, _ in rows)
        if size < SMALLEST or height > h or any(text_width(line, 11) > w - 6 for line in note.split("\n")):
            raise ValueError(f"{label!r} with the note {note!r} does not fit into a box of {w:.0f} × {h:.0f}")
        self._add('<g class="box">')
        self.rect(x, y, w, h, colour, radius=min(8, h / 3), strong=strong)
        below = y + (h - height) / 2
        for i, (line, points, heavy) in enumerate(rows):
            middle = below + points * LINE_HEIGHT / 2
            ink = colour.text if i < label.count("\n") + 1 else GREY
            self.text(x + w / 2, middle, line, size=points, bold=heavy, mono=mono, colour=ink)
            below += points * LINE_HEIGHT
        self._add("</g>")

    def path(
        self,
        points: Iterable[tuple[float, float]],
        colour: Colour | str = MODULE,
        *,
        width: float = 1.6,
        dashed: bool = False,
        fill: Colour | None = None,
    ) -> None:
        """A line through the points; with `fill`, the area that it encloses is filled."""
        points = list(points)
        line = colour if isinstance(colour, str) else colour.line
        places = " ".join(f"{_n(self._x + x)},{_n(self._y + y)}" for x, y in points)
        look = f'stroke="{line}" stroke-width="{_n(width)}" stroke-linejoin="round"'
        look += ' stroke-dasharray="5 4"' if dashed else ""
        area = f'fill="{fill.line}" fill-opacity="0.25"' if fill else 'fill="none"'
        self._add(f'<polyline points="{places}" {area} {look}/>', max(y for _, y in points))

    def arrow(
        self,
        *points: tuple[float, float],
        label: str = "",
        colour: Colour = MODULE,
        width: float = 1.6,
        dashed: bool = False,
        side: float = 1,
        size: float = 11,
    ) -> None:
        """An arrow through the points. Its label stands beside the middle of its longest piece.

        That is above a horizontal piece and to the right of a vertical one; `side=-1` puts it on the other side.
        """
        (x0, y0), (x1, y1) = points[-2:]
        length = max(1e-9, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
        dx, dy, head = (x1 - x0) / length, (y1 - y0) / length, 5 + 1.5 * width
        bx, by = x1 - head * dx, y1 - head * dy
        self._add('<g class="arrow">')
        self.path([*points[:-1], (bx + dx, by + dy)], colour, width=width, dashed=dashed)
        corners = ((x1, y1), (bx - head * dy / 2, by + head * dx / 2), (bx + head * dy / 2, by - head * dx / 2))
        places = " ".join(f"{_n(self._x + x)},{_n(self._y + y)}" for x, y in corners)
        self._add(f'<polygon points="{places}" fill="{colour.line}"/>', max(y for _, y in corners))
        if label:
            a, b = max(pairwise(points), key=lambda pair: abs(pair[0][0] - pair[1][0]) + abs(pair[0][1] - pair[1][1]))
            flat = abs(a[0] - b[0]) >= abs(a[1] - b[1])
            x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
            ink = GREY if colour in (MODULE, PLAIN) else colour.text
            anchor = "middle" if flat else ("start" if side > 0 else "end")
            x, y = (x, y - side * 10) if flat else (x + side * 8, y)
            self.text(x, y, label, size=size, mono=True, anchor=anchor, colour=ink)
        self._add("</g>")

    def dot(self, x: float, y: float, colour: Colour = MODULE, radius: float = 4) -> None:
        """A filled circle."""
        place = f'cx="{_n(self._x + x)}" cy="{_n(self._y + y)}" r="{_n(radius)}"'
        self._add(f'<circle {place} fill="{colour.line}"/>', y + radius)

    def add_sign(self, x: float, y: float, colour: Colour = RESIDUAL) -> None:
        """The sum of a residual connection: ⊕ with its middle at (x, y)."""
        place = f'cx="{_n(self._x + x)}" cy="{_n(self._y + y)}" r="11"'
        self._add(f'<circle {place} fill="{colour.fill}" stroke="{colour.line}" stroke-width="2"/>', y + 11)
        self.path([(x - 6, y), (x + 6, y)], colour.text)
        self.path([(x, y - 6), (x, y + 6)], colour.text)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, Colour]]) -> None:
        """Small squares with their meanings, in a row."""
        for name, colour in entries:
            self.rect(x, y - 6, 12, 12, colour, strong=True)
            self.text(x + 18, y, name, size=12, anchor="start", colour=GREY)
            x += 18 + text_width(name, 12) + 20

    def finish(self) -> Diagram:
        """The drawing, on a panel that is high enough for it."""
        height = self._reach[0] + MARGIN
        size = f'viewBox="0 0 {self.width} {_n(height)}" width="{self.width}" height="{_n(height)}"'
        alt = html.escape(self.title)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{alt}"'
        look = f'font-family="{SANS}" font-size="13" text-anchor="middle" fill="{INK}"'
        told = f"<title>{html.escape(self.title)}</title><desc>{html.escape(self.description)}</desc>"
        area = f'width="{self.width - 1}" height="{_n(height - 1)}" rx="12" fill="{PAPER}" stroke="{BORDER}"'
        panel = f'<rect x="0.5" y="0.5" {area}/>'
        return Diagram(
            "\n".join([f"{head} {look}>", told, panel, *self._parts, "</svg>"]), self.title, self.description
        )

    def _add(self, part: str, bottom: float = float("-inf")) -> None:
        self._parts.append(part)
        self._reach[0] = max(self._reach[0], self._y + bottom)
