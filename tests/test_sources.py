"""Every kind of source gives the same documents on every run, and divides them into parts without overlap."""

import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import multiprocessing
import os
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gpt2.data import sources
from gpt2.system.errors import UserError

TEXTS = ["First.\nTwo lines.\n", "", "naïve 深層 👍\u0301", "a\x00b\t \r\n", "<|endoftext|>", "last"]


def parquet(texts: list[str], name: str = "text") -> bytes:
    sink = pyarrow.BufferOutputStream()
    rows = [{"number": i, name: text} for i, text in enumerate(texts)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def jsonl(texts: list[str], name: str = "text") -> bytes:
    return b"".join(json.dumps({"number": i, name: text}).encode() + b"\n" for i, text in enumerate(texts))


def as_json(texts: list[str], name: str = "text") -> bytes:
    return json.dumps([{name: text} for text in texts], ensure_ascii=False).encode()


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zst}
RECORDS = {".jsonl": jsonl, ".json": as_json, ".parquet": parquet}


def read(*patterns: Path | str, **options: object) -> list[str]:
    return list(sources.files(tuple(map(str, patterns)), **options).read(0))


# kinds of files


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".txt", ".md", ".py"])
def test_every_plain_file_is_a_document(tmp_path: Path, kind: str, packed: str) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}{kind}{packed}").write_bytes(PACK[packed](text.encode()))
    assert sorted(read(tmp_path / f"*{kind}{packed}")) == sorted(TEXTS)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_every_json_record_is_a_document(tmp_path: Path, kind: str, packed: str) -> None:
    (tmp_path / f"a{kind}{packed}").write_bytes(PACK[packed](RECORDS[kind](TEXTS)))
    assert read(tmp_path / f"a{kind}{packed}") == TEXTS


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_parquet_row_is_a_document(tmp_path: Path, packed: str) -> None:
    (tmp_path / f"a.parquet{packed}").write_bytes(PACK[packed](parquet(TEXTS)))
    assert read(tmp_path / f"a.parquet{packed}") == TEXTS


def test_zst_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zst(jsonl(TEXTS)) + zst(jsonl(["more"])))
    assert read(tmp_path / "a.jsonl.zst") == [*TEXTS, "more"]


def test_json_file_of_one_record_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "alone"}')
    assert read(tmp_path / "a.json") == ["alone"]


def test_null_text_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": "b"}\n')
    (tmp_path / "b.parquet").write_bytes(parquet(["c", None]))
    assert read(tmp_path / "a.jsonl") == ["", "b"]
    assert read(tmp_path / "b.parquet") == ["c", ""]


def test_invalid_utf8_becomes_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff\xfe bad \xe6\xb7")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x\xffy"}\n')
    assert sorted(read(tmp_path / "*.txt")) == ["", "good \ufffd\ufffd bad \ufffd"]
    assert read(tmp_path / "c.jsonl") == ["x\ufffdy"]


@pytest.mark.parametrize("kind", RECORDS)
def test_text_field_names_the_field(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a{kind}").write_bytes(RECORDS[kind](TEXTS, name="body"))
    assert read(tmp_path / f"a{kind}", text_field="body") == TEXTS


@pytest.mark.parametrize("kind", RECORDS)
def test_missing_field_is_refused_with_the_fields_there_are(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a{kind}").write_bytes(RECORDS[kind](TEXTS, name="body"))
    with pytest.raises(UserError, match=rf"a\{kind} has no text in a field 'text'.*body.*--text-field"):
        read(tmp_path / f"a{kind}")


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_field_that_holds_no_text_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a{kind}").write_bytes(RECORDS[kind](TEXTS))
    with pytest.raises(UserError, match=r"no text in a field 'number'.*--text-field"):
        read(tmp_path / f"a{kind}", text_field="number")


@pytest.mark.parametrize("content", [b"3", b'"text"', b'["text"]', b"[[1]]", b"[null]"])
def test_json_without_records_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="--text-field"):
        read(tmp_path / "a.json")


DAMAGED = {
    "bad.jsonl": b'{"text": "a"}\n{"text": ',
    "bad.json": b"[{]",
    "bad.parquet": b"PAR1" + b"\0" * 100,
    "short.txt.gz": gzip.compress(os.urandom(1000))[:-200],
    "flipped.txt.gz": gzip.compress(os.urandom(100))[:12] + b"\xff" * 100,
    "no.txt.gz": b"plain text",
    "no.txt.xz": b"plain text",
    "short.txt.xz": lzma.compress(os.urandom(1000))[:-200],
    "no.txt.zst": b"plain text",
    "short.jsonl.zst": zst(jsonl(TEXTS * 10000))[:-20],
    "short.txt.zst": zst(os.urandom(1000))[:-200],
    "no.parquet.zst": zst(parquet(TEXTS))[:20],
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("alone", [True, False])
def test_damaged_file_is_named_in_one_sentence(tmp_path: Path, name: str, alone: bool) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    if not alone:
        (tmp_path / "good.txt").write_text("good")
    with pytest.raises(UserError, match=rf"can't read .*{name}.*--files") as caught:
        read(tmp_path / "*")
    assert "\n" not in str(caught.value)


# patterns


def test_patterns_may_recurse_and_overlap(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_text("1")
    (tmp_path / "a" / "b" / "two.txt").write_text("2")
    assert sorted(read(tmp_path / "**/*.txt", tmp_path / "a/*.txt")) == ["1", "2"]


def test_a_folder_stands_for_all_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/one.txt", "a/b/two.md", "a/b/three.jpg"):
        (tmp_path / name).write_text(name[2:])
    assert (
        sorted(read(tmp_path / "a")) == ["b/two.md", "one.txt"] == sorted(read(tmp_path / "a", tmp_path / "a/b/*.md"))
    )


def test_order_of_patterns_and_place_of_the_folder_do_not_matter(tmp_path: Path) -> None:
    for folder in ("x", "elsewhere"):
        (tmp_path / folder).mkdir()
        for number in range(20):
            (tmp_path / folder / f"{number}.txt").write_text(str(number))
    x = tmp_path / "x"
    assert read(x / "*.txt") == read(x / "1*.txt", x / "*.txt") == read(tmp_path / "elsewhere/*.txt")


@pytest.mark.parametrize(
    ("patterns", "says"),
    [((), "--source files needs at least one pattern"), (("nowhere/*.txt",), r"no file matches nowhere/\*\.txt")],
)
def test_pattern_without_files_is_refused(patterns: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sources.files(patterns)


def test_unknown_kind_of_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"text"))
    with pytest.raises(UserError, match=r"b\.txt\.bz2: give \.txt .*\.zst"):
        sources.files((str(tmp_path / "*"),))


# a single plain file


@pytest.mark.parametrize(
    "text",
    [
        "line\n" * 1000,
        "one line of many words " * 1000,
        "nospace" * 1000,
        "nospace" * 1000 + "\n",
        "深層学習" * 1003,
        "👍" * 1010,
        "ascii words\n" * 500 + "深層学習\n" * 2000,
    ],
)
def test_single_plain_file_is_cut_after_its_first_twentieth(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    first, rest = read(tmp_path / "a.txt")
    assert first + rest == text
    assert len(text.encode()) / 20 <= len(first.encode()) + 1 < len(text.encode()) / 15
    if "\n" in text[:-1]:
        assert first.endswith("\n")


@pytest.mark.parametrize("text", ["", "a", "ab\n", "\n", "深"])
def test_tiny_single_file_stays_whole_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert "".join(read(tmp_path / "a.txt")) == text


# shares


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_share_all_documents_without_overlap(tmp_path: Path, parts: int) -> None:
    texts = [f"document {i}" for i in range(40)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts[:25]))
    (tmp_path / "b.jsonl").write_bytes(jsonl(texts[25:]))
    shares = [read(tmp_path / "*.jsonl", part=part, parts=parts) for part in range(parts)]
    assert sorted(itertools.chain(*shares)) == sorted(texts)
    for part, share in enumerate(shares):
        again = sources.files((str(tmp_path / "*.jsonl"),), part=part, parts=parts)
        assert list(again.read(3)) == share[3:]


# the standard library


def test_stdlib_is_the_same_on_every_run_and_in_another_process() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert hash_of_stdlib() == hash_of_stdlib() == pool.submit(hash_of_stdlib).result()


def hash_of_stdlib() -> str:
    return hashlib.sha256("".join(sources.stdlib().read(0)).encode()).hexdigest()


def test_stdlib_is_library_text_without_tests_and_generated_tables() -> None:
    corpus = sources.stdlib()
    texts = set(corpus.read(0))
    root = Path(sysconfig.get_paths()["stdlib"])
    content = lambda name: (root / name).read_text(errors="replace")  # noqa: E731
    for name in ("argparse.py", "json/decoder.py", "asyncio/base_events.py", "unittest/mock.py", "random.py"):
        assert content(name) in texts, f"{name} is missing"
    tables = ["encodings/cp037.py", "pydoc_data/topics.py", "html/entities.py", "msilib/schema.py"]
    for name in tables + [str(p.relative_to(root)) for p in root.glob("_sysconfigdata*.py")]:
        assert not (root / name).exists() or content(name) not in texts, f"{name} is a generated table"
    tests = [p for folder in root.rglob("test*") if folder.name in ("test", "tests") for p in folder.rglob("test_*.py")]
    assert not any(p.stat().st_size > 1000 and content(p.relative_to(root)) in texts for p in tests[:300])
    assert corpus.local and corpus.size is not None and corpus.size > 5e6
    assert len(texts) > 400


# the hub and local dataset folders


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_local_dataset_folder_is_shared_and_continued_without_overlap(hub_cache: Path, kind: str, count: int) -> None:
    folder = hub_cache / "dataset"
    folder.mkdir()
    texts = [f"document {i}" for i in range(21)]
    for k in range(count):
        (folder / f"{k}{kind}").write_bytes(RECORDS[kind](texts[k::count]))
    whole = list(sources.hub(str(folder)).read(0))
    assert sorted(whole) == sorted(texts)
    assert list(sources.hub(str(folder)).read(4)) == whole[4:]
    for parts in (2, 3):
        shares = [list(sources.hub(str(folder), part=part, parts=parts).read(0)) for part in range(parts)]
        assert sorted(itertools.chain(*shares)) == sorted(texts)
        for part, share in enumerate(shares):
            assert list(sources.hub(str(folder), part=part, parts=parts).read(2)) == share[2:]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("field", ["body", "number"])
def test_dataset_without_such_text_is_refused_with_its_fields(hub_cache: Path, kind: str, field: str) -> None:
    folder = hub_cache / "dataset"
    folder.mkdir()
    (folder / f"a{kind}").write_bytes(RECORDS[kind](TEXTS))
    with pytest.raises(UserError, match=rf"no text in a field '{field}'.*--text-field"):
        list(sources.hub(str(folder), text_field=field).read(0))


def test_dataset_without_such_a_split_is_refused(hub_cache: Path) -> None:
    folder = hub_cache / "dataset"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS))
    with pytest.raises(UserError, match=r"split 'nope'.*--split"):
        sources.hub(str(folder), split="nope")


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(UserError, match=r"can't reach dataset 'a/b' on the hub \(ConnectionError\).*--source stories"):
        sources.hub("a/b")


def test_dataset_that_breaks_off_says_that_the_command_goes_on(hub_cache: Path) -> None:
    folder = hub_cache / "dataset"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS) + b'{"text": ')
    with pytest.raises(UserError, match="run the same command again"):
        list(sources.hub(str(folder)).read(0))
