"""Promises about novels: clean text, a document per chapter, whole books held out, and the stories in the box."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

import fineweb
from gpt2.data import sources
from gpt2.data.novels import LEAST_TEXT, novels, read_book, unwrap
from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding
from gpt2.system.errors import UserError

PARAGRAPH = "The old man looked at the sea for a long while, and then he spoke of the island and of its gold. " * 3


def book(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def chapters(count: int, heading: str = "CHAPTER {}", text: str = PARAGRAPH) -> str:
    return "A TITLE\n\n\n" + "".join(f"\n\n{heading.format(i)}\n\n{text}" for i in range(1, count + 1))


# one book


@pytest.mark.parametrize("heading", ["CHAPTER {}", "Chapter {}. Of Gold", "  CHAP. {}", "LETTER {}", "{}", " {}. "])
def test_a_chapter_is_a_document(tmp_path: Path, heading: str) -> None:
    found = read_book(book(tmp_path / "a.txt", chapters(5, heading)))
    assert [text.split("\n")[0] for text in found.chapters] == [heading.format(i).strip() for i in range(1, 6)]
    assert all(text.endswith(PARAGRAPH.strip()) for text in found.chapters) and found.remarks == []


def test_titles_alone_on_a_line_are_headings_where_there_are_no_others(tmp_path: Path) -> None:
    text = "".join(
        f"\n\n\n {title}\n\n{PARAGRAPH}" for title in ("The Blue Cross", "The Queer Feet", "The Wrong Shape")
    )
    assert [c.split("\n")[0] for c in read_book(book(tmp_path / "a.txt", text)).chapters] == [
        "The Blue Cross",
        "The Queer Feet",
        "The Wrong Shape",
    ]


def test_numbers_within_chapters_do_not_cut_them(tmp_path: Path) -> None:
    text = chapters(4, text=f"{PARAGRAPH}\n\nII\n\n{PARAGRAPH}")
    assert len(read_book(book(tmp_path / "a.txt", text)).chapters) == 4


def test_a_long_preface_is_a_document_too(tmp_path: Path) -> None:
    found = read_book(book(tmp_path / "a.txt", f"PREFACE\n\n{PARAGRAPH}{chapters(3)}"))
    assert len(found.chapters) == 4 and found.chapters[0].startswith("PREFACE")


def test_a_book_without_chapters_is_one_document_and_says_so(tmp_path: Path) -> None:
    found = read_book(book(tmp_path / "a.txt", PARAGRAPH))
    assert found.chapters == [PARAGRAPH.strip()]
    assert found.remarks == ["has no chapter headings and is one document"]


def test_empty_chapters_and_tables_of_contents_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    contents = "\n".join(f"CHAPTER {i} A title" for i in range(1, 5))
    found = read_book(book(tmp_path / "a.txt", f"{contents}{chapters(4)}\n\nCHAPTER 5\n\n"))
    assert len(found.chapters) == 4 and all(len(text) >= LEAST_TEXT for text in found.chapters)
    assert found.remarks == ["has 5 headings without a chapter (a table of contents?), which were left out"]


@pytest.mark.parametrize(
    ("encode", "remark"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), None),
        (lambda text: text.replace("\n", "\r\n").encode(), None),
        (lambda text: text.replace("\n", "\r").encode(), None),
        (lambda text: text.encode("cp1252"), "is not UTF-8 and was read as Windows-1252"),
        (lambda text: text.replace("gold", "go\x00l\x0cd").encode(), "held 30 control characters, which were removed"),
    ],
    ids=["BOM", "CRLF", "CR", "cp1252", "control"],
)
def test_every_encoding_gives_the_same_text(tmp_path: Path, encode, remark: str | None) -> None:
    text = chapters(5, text=PARAGRAPH + "\n\n“Fifteen men — naïve men!”")
    found = read_book(book(tmp_path / "a.txt", encode(text)))
    assert found.chapters == read_book(book(tmp_path / "b.txt", text)).chapters
    assert found.remarks == ([remark] if remark else [])


def test_lines_broken_at_a_width_are_joined_and_verses_are_not() -> None:
    verse = "Fifteen men on the dead man's chest\nYo-ho-ho, and a bottle of rum!"
    prose = PARAGRAPH.strip()
    lines = ["".join(line).strip() for line in _broken(prose, 60)]
    assert len(lines) > 3
    assert unwrap("\n".join(["I", "", *lines, "", verse, ""])) == f"I\n\n{prose}\n\n{verse}\n\n"
    assert unwrap(f"{prose}\n{prose}") == f"{prose}\n{prose}"


def _broken(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        line += f" {word}"
    return [*lines, line]


# a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine novels, each with a word of its own, one of them without text; and a file that is none."""
    library = tmp_path / "library" / "corpus"
    library.mkdir(parents=True)
    for number in range(8):
        text = PARAGRAPH.replace("gold", "gold" + "xyzw"[number % 4] * (number // 4 + 1))
        book(library / f"{number}.txt", chapters(3 + number, text=text))
    book(library / "empty.txt", "")
    book(library.parent / "README.md", "no novel")
    return library.parent


def test_whole_books_are_held_out_for_val_and_test(folder: Path, tmp_path: Path, capsys) -> None:
    fineweb.main(["--source", "novels", "--files", str(folder), "--vocab-size", "300", "--out", str(tmp_path / "out")])
    assert "empty.txt holds no text" in capsys.readouterr().out
    encoding = get_encoding(300)
    texts = {}
    for split in ("val", "test", "train"):
        tokens = np.concatenate([shard.read(0, shard.tokens) for shard in find_shards(tmp_path / "out", split)])
        texts[split] = encoding.decode(tokens.tolist()).split("<|endoftext|>")[1:]
    assert [text for split in texts.values() for text in split] == list(novels((str(folder),)).read(0))
    books = {split: {text.split("gold")[1].split(".")[0] for text in texts[split]} for split in texts}
    assert [len(books[split]) for split in ("val", "test", "train")] == [3, 3, 2]
    assert len(set.union(*books.values())) == 8
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [shard["name"] for shard in index["shards"]] == ["val_000000.npy", "test_000000.npy", "train_000001.npy"]


def test_the_place_of_the_folder_does_not_matter(folder: Path, tmp_path: Path) -> None:
    before = list(novels((str(folder),)).read(0))
    moved = folder.rename(tmp_path / "elsewhere")
    assert list(novels((str(moved),)).read(0)) == before == list(novels((f"{moved}/**/*.txt",)).read(0))
    assert list(novels((str(moved),)).read(7)) == before[7:]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "needs a folder of .txt files"),
        (["nowhere"], "no file matches nowhere"),
        (["library"], "library holds 2 novels; give 7 or more .txt files"),
    ],
)
def test_a_folder_without_enough_novels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library").mkdir()
    for number in range(2):
        book(tmp_path / "library" / f"{number}.txt", chapters(3))
    with pytest.raises(UserError, match=says):
        fineweb.main(["--source", "novels", *(["--files", *files] if files else []), "--out", "out"])


def test_parts_of_novels_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't divide whole books"):
        fineweb.main(["--source", "novels", "--files", str(folder), "--parts", "2", "--out", str(tmp_path / "out")])


# a test split of any source


def test_test_holds_the_documents_after_val(tmp_path: Path) -> None:
    for number in range(100):
        book(tmp_path / f"{number}.md", f"{number} " + PARAGRAPH)
    words = ["--source", "files", "--files", str(tmp_path / "*.md"), "--vocab-size", "300", "--out"]
    fineweb.main([*words, str(tmp_path / "one")])
    fineweb.main([*words, str(tmp_path / "two"), "--test"])
    one, two = (
        {split: [shard.tokens for shard in find_shards(tmp_path / name, split)] for split in ("val", "train")}
        for name in ("one", "two")
    )
    test = find_shards(tmp_path / "two", "test")[0].tokens
    assert one["val"] == two["val"] and 0.9 < test / one["val"][0] < 1.1
    assert sum(one["train"]) == test + sum(two["train"])


def test_parts_write_val_and_test_once(tmp_path: Path) -> None:
    for number in range(100):
        book(tmp_path / f"{number}.md", f"{number} " + PARAGRAPH)
    words = ["--source", "files", "--files", str(tmp_path / "*.md"), "--vocab-size", "300", "--out"]
    for part in ("0", "1"):
        fineweb.main(
            [*words, str(tmp_path / "out"), "--test", "--shard-tokens", "3000", "--parts", "2", "--part", part]
        )
    names = sorted(path.name for path in (tmp_path / "out").glob("*.npy"))
    trains = [name for name in names if name.startswith("train")]
    assert [name for name in names if name not in trains] == ["test_000000.npy", "val_000000.npy"]
    assert trains == [f"train_{number:06d}.npy" for number in range(1, len(trains) + 1)]


# the stories


def test_the_stories_are_twelve_books_in_chapters() -> None:
    with lzma.open(sources.STORIES) as file:
        records = [json.loads(line) for line in file]
    assert len({(r["title"], r["author"], r["year"]) for r in records}) == 12
    assert len({(r["title"], r["chapter"]) for r in records}) == len(records)
    assert list(sources.stories().read(0)) == [r["text"] for r in records]
    assert sources.stories().size == sum(len(r["text"].encode()) for r in records)
    assert sources.STORIES.stat().st_size < 1_400_000


def test_stories_hold_out_whole_chapters_of_several_books(tmp_path: Path) -> None:
    fineweb.main(["--source", "stories", "--vocab-size", "2048", "--out", str(tmp_path)])
    val = find_shards(tmp_path, "val")[0]
    held_out = get_encoding(2048).decode(val.read(0, val.tokens).tolist()).split("<|endoftext|>")[1:]
    with lzma.open(sources.STORIES) as file:
        first = [json.loads(line) for line, _ in zip(file, held_out, strict=False)]
    assert held_out == [record["text"] for record in first]
    assert len({record["title"] for record in first}) >= 5
    assert 0.04 < sum(len(text.encode()) for text in held_out) / sources.STORIES_BYTES < 0.06
