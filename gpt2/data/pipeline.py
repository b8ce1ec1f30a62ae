"""From documents to tokens, on every core: cut documents into pieces, batch them, tokenise the batches in order.

Built in notebook 10.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tiktoken

from gpt2.data.tokenizer import END_OF_TEXT

BATCH_CHARACTERS = 2**20  # per task of a worker: enough text to make the cost of handing it over negligible
# The last place in a text where white space follows another character. Python takes U+001C … U+001F for white space
# and GPT-2's pattern does not, so this uses a few characters that are white space for both.
LAST_CUT = re.compile(r".*\S(?=[ \n\t\r\u3000])", re.DOTALL)


class Piece(NamedTuple):
    """Text to tokenise: a document, or a part of a long one."""

    document: int  # its number in the source
    starts: bool  # whether the document starts here
    text: str


Tokenized = list[tuple[Piece, np.ndarray]]  # each piece of a batch with its tokens (N,) uint16


def pieces(documents: Iterable[str], first: int) -> Iterator[Piece]:
    """Number the documents from `first`, leave out empty ones, and cut long ones where no token can reach across.

    In GPT-2's pattern, white space after another character always starts a new token. A million characters without
    such a place are cut anyway, so that a line of 50 MB does not have to be tokenised in one go.
    """
    for number, text in enumerate(documents, first):
        start = 0
        while start < len(text):
            end = start + BATCH_CHARACTERS
            if end < len(text) and (cut := LAST_CUT.match(text, start, end)):
                end = cut.end()
            yield Piece(number, start == 0, text[start:end])
            start = end


def batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces until a batch has BATCH_CHARACTERS characters."""
    batch: list[Piece] = []
    characters = 0
    for piece in stream:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokenize(encoding: tiktoken.Encoding, batch: list[Piece]) -> Tokenized:
    """Tokenise each piece, with `<|endoftext|>` in front of each document.

    tiktoken releases Python's lock while it works. Whole documents are joined to one call, in which no token reaches
    across `<|endoftext|>`, so threads wait for the lock once per batch and not once per document.
    """
    texts = [as_unicode(piece.text) for piece in batch]
    if all(piece.starts for piece in batch) and not any(END_OF_TEXT in text for text in texts):
        joined = "".join(END_OF_TEXT + text for text in texts)
        tokens = encoding.encode_to_numpy(joined, allowed_special={END_OF_TEXT}).astype(np.uint16)
        return list(zip(batch, np.split(tokens, np.flatnonzero(tokens == encoding.eot_token)[1:]), strict=True))
    result = []
    for piece, text in zip(batch, texts, strict=True):
        tokens = encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        result.append((piece, np.insert(tokens, 0, encoding.eot_token) if piece.starts else tokens))
    return result


def as_unicode(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can hold and UTF-8 can't."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tokenized(encoding: tiktoken.Encoding, stream: Iterable[Piece], workers: int) -> Iterator[Tokenized]:
    """Tokenise batches in `workers` threads, in order. Few batches are in progress at a time: memory stays flat."""
    # The first thread that uses a regular expression owns its scratch memory; all others check for that owner.
    # With a worker as the owner, two workers took 1.6 × as long as with this thread, which encodes nothing else.
    encoding.encode_ordinary(" ")
    queue: deque[Future[Tokenized]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches(stream):
            queue.append(pool.submit(tokenize, encoding, batch))
            if len(queue) > 2 * workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
