"""Make gpt2/data/stories.jsonl.xz, the text in the box, from a folder of novels.

    python scripts/stories.py FOLDER

FOLDER holds the files of two corpora for stylometry (github.com/computationalstylistics: 100_english_novels and
A_Small_Collection_of_British_Fiction). All twelve books are in the public domain in the United States.
"""

import json
import lzma
import sys
from pathlib import Path

from gpt2.data.novels import read_book
from gpt2.data.sources import STORIES, hash_order
from gpt2.system.errors import UserError, run_command
from gpt2.system.files import write_atomically

BOOKS = {
    "Burnett_Garden_1911": ("The Secret Garden", "Frances Hodgson Burnett", 1911),
    "Burnett_Lord_1886": ("Little Lord Fauntleroy", "Frances Hodgson Burnett", 1886),
    "Burnett_Princess_1905": ("A Little Princess", "Frances Hodgson Burnett", 1905),
    "Chesterton_Innocence_1911": ("The Innocence of Father Brown", "G. K. Chesterton", 1911),
    "Chesterton_Thursday_1908": ("The Man Who Was Thursday", "G. K. Chesterton", 1908),
    "Doyle_Hound_1902": ("The Hound of the Baskervilles", "Arthur Conan Doyle", 1902),
    "Doyle_Lost_1912": ("The Lost World", "Arthur Conan Doyle", 1912),
    "Haggard_Mines_1885": ("King Solomon's Mines", "H. Rider Haggard", 1885),
    "Kipling_Captains_1896": ("Captains Courageous", "Rudyard Kipling", 1896),
    "Stevenson_Arrow_1888": ("The Black Arrow", "Robert Louis Stevenson", 1888),
    "Stevenson_Treasure_1883": ("Treasure Island", "Robert Louis Stevenson", 1883),
    "Ward_Milly_1881": ("Milly and Olly", "Mrs. Humphry Ward", 1881),
}


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("name the folder of novels: python scripts/stories.py FOLDER")
    records = []
    for name, (title, author, year) in BOOKS.items():
        for number, text in enumerate(read_book(Path(sys.argv[1], f"{name}.txt")).chapters, 1):
            records.append({"title": title, "author": author, "year": year, "chapter": number, "text": text})
    # in hash order, so that the first twentieth, which is held out, is whole chapters of several books
    records.sort(key=lambda record: hash_order(f"{record['title']}/{record['chapter']}"))
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    packed = lzma.compress(lines, preset=9 | lzma.PRESET_EXTREME)
    write_atomically(STORIES, lambda file: file.write(packed))
    text_bytes = sum(len(record["text"].encode()) for record in records)
    print(f"{STORIES}: {len(records)} chapters, {text_bytes:,} bytes of text, {len(packed):,} packed")


if __name__ == "__main__":
    run_command(main)
