"""Novels as plain text files: cleaned, cut into chapters, with whole books held out.

Built in notebook 10.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gpt2.data.sources import Corpus, hash_order, matching_files
from gpt2.system.errors import UserError

HELD_OUT = 3  # books for val, and as many for test

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffd]")  # all but tab and newline
# Three ways to mark a chapter, in the order in which they are tried: its name, a number alone on a line, or a title
# alone on a line after two empty ones.
HEADINGS = (
    re.compile(r"^[ \t]*(?:CHAPTER|Chapter|CHAP\.|LETTER|Letter)[ \t]+\S[^\n]{0,80}$", re.MULTILINE),
    re.compile(r"^[ \t]*(?:[IVXLC]+|[0-9]{1,3})\.?[ \t]*$", re.MULTILINE),
    re.compile(r"(?<=\n\n)\n+[ \t]*[A-Z][^\n.,;:!?\"]{2,60}(?=\n[ \t]*\n)"),
)
LEAST_CHAPTERS = 3  # fewer matches of a heading are not chapters
LEAST_TEXT = 200  # characters; less is an entry of a table of contents, or an empty chapter
WIDEST_LINE = 90  # characters; a longer median is not a width at which lines were broken
NEARLY_FULL = 0.9  # lines are filled unevenly


@dataclass(frozen=True)
class Book:
    """The chapters of a book, and what was done to its file."""

    chapters: list[str]
    remarks: list[str]


def novels(patterns: tuple[str, ...]) -> Corpus:
    """Novels in .txt files: a document per chapter, the books in hash order, three each held out for val and test.

    Prints what was unusual about a file. Raises UserError if there are too few books.
    """
    if not patterns:
        raise UserError("--source novels needs a folder of .txt files, for example: --files 100_english_novels")
    paths = [path for path in matching_files(patterns) if path.suffix == ".txt"]
    books = {path: read_book(path) for path in sorted(paths, key=lambda path: hash_order(path.name))}
    for path, book in books.items():
        for remark in book.remarks:
            print(f"{path.name} {remark}")
    texts = [book.chapters for book in books.values() if book.chapters]
    if len(texts) <= 2 * HELD_OUT:
        raise UserError(
            f"{' '.join(patterns)} holds {len(texts)} novels; give {2 * HELD_OUT + 1} or more .txt files, because "
            f"{HELD_OUT} are held out for val and {HELD_OUT} for test, or use --source files"
        )
    chapters = [chapter for text in texts for chapter in text]
    ends = list(itertools.accumulate(len(text) for text in texts))
    size = sum(len(chapter.encode()) for chapter in chapters)
    return Corpus(lambda skip: iter(chapters[skip:]), size, True, (ends[HELD_OUT - 1], ends[2 * HELD_OUT - 1]))


def read_book(path: Path) -> Book:
    """Read a text file as clean chapters. A file without headings is one chapter, and one without text is none."""
    remarks = []
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        remarks.append("is not UTF-8 and was read as Windows-1252")
        text = content.decode("cp1252", errors="replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text, removed = CONTROL.subn("", text)
    if removed:
        remarks.append(f"held {removed:,} control characters, which were removed")
    front, *parts = split_at_headings(text)
    chapters = [unwrap(part) for part in (front, *parts) if len(part) >= LEAST_TEXT or (part and not parts)]
    if not parts:
        remarks.append("has no chapter headings and is one document" if chapters else "holds no text")
    empty = sum(len(part) < LEAST_TEXT for part in parts)
    if empty:
        remarks.append(f"has {empty} headings without a chapter (a table of contents?), which were left out")
    return Book(chapters, remarks)


def split_at_headings(text: str) -> list[str]:
    """The text before the first heading, and each heading with the text up to the next. No headings: the whole text."""
    for heading in HEADINGS:
        starts = [match.start() for match in heading.finditer(text)]
        if len(starts) >= LEAST_CHAPTERS:
            ends = [*starts, len(text)]
            return [text[start:end].strip() for start, end in zip([0, *starts], ends, strict=True)]
    return [text.strip()]


def unwrap(text: str) -> str:
    """Join the lines of paragraphs that were broken at a fixed width.

    A line break is one of these if the next line's first word would not have fitted. Verses and headings stay as they
    are, and so does a text with a paragraph per line.
    """
    lines = [line.strip() for line in text.split("\n")]
    width = median([len(line) for line in lines if line] or [0])
    if width > WIDEST_LINE:
        return "\n".join(lines)
    joined = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        first_word = after.partition(" ")[0]
        full = len(line) + 1 + len(first_word) > NEARLY_FULL * width
        joined.append(line + (" " if line and after and full else "\n"))
    return "".join(joined)
