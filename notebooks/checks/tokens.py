"""Checkers of notebook 01."""

import math

import regex

from checks import exercise, expect, expect_equal
from gpt2.data.tokenizer import get_encoding

TEXTS = ["", "in 1984", "x2 + 34 = 5.60", "it's 12'th  7\n\n 8 people", "٣٤ ½ x²", "    return 100\n"]


@exercise
def join(solution) -> None:
    """Tokens with every occurrence of a pair made one."""
    a, b, c = b"a", b"b", b"c"
    given = [a, b, a, b, c]
    found = solution(list(given), (a, b))
    expect(isinstance(found, list), f"the result should be a list of tokens, and is {found!r}; is there a `return`?")
    case = f"{given} with the pair a, b"
    expect(found != given, f"{case} came back unchanged; compare a pair with a pair: `tuple(tokens[i : i + 2])`")
    expect(
        all(isinstance(token, bytes) for token in found),
        f"{case} became {found}: the two tokens should be concatenated, `tokens[i] + tokens[i + 1]`",
    )
    expect(found != [b"ab", a, b, c], f"{case} became {found}: only the first occurrence is joined; go on to the end")
    expect(
        len(b"".join(found)) <= len(b"".join(given)),
        f"{case} became {found}: the second token of the pair stands there twice; after a match, go on by two tokens",
    )
    expect(
        c in found,
        f"{case} became {found}: the last token is lost; it has no right neighbour, and still belongs to the text",
    )
    expect_equal(found, [b"ab", b"ab", c], case)
    expect_equal(solution([a, a, a], (a, a)), [b"aa", a], "aaa with the pair a, a (occurrences do not overlap)")
    expect_equal(solution([b"ab", c, a], (b"ab", c)), [b"abc", a], "a pair of tokens of two bytes and one byte")
    expect_equal(solution([b"ab", a, b], (a, b)), [b"ab", b"ab"], "the pair a, b in the tokens ab, a, b")
    expect_equal(solution([], (a, b)), [], "an empty list")


@exercise
def longest_match(solution) -> None:
    """Greedy tokens, longest first."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"ab", b"bc", b"abc", b"cd", b"cde"):
        ranks[token] = len(ranks)
    found = solution(b"abcdex", ranks)
    expect(isinstance(found, list), f"the result should be a list of tokens, and is {found!r}; is there a `return`?")
    expect(
        all(isinstance(token, bytes) for token in found),
        f"the result is {found}: give the tokens themselves, as bytes, not their ranks",
    )
    expect(
        b"".join(found) == b"abcdex",
        f"b'abcdex' became {found}: laid end to end, that is {b''.join(found)!r}; nothing may be lost or doubled",
    )
    expect(max(map(len, found)) > 1, f"b'abcdex' became {found}: these are the shortest tokens that fit")
    expect(
        found[0] != b"ab",
        f"b'abcdex' became {found}: b'abc' fits at the beginning too, and is longer than b'ab'; try all lengths there",
    )
    expect_equal(found, [b"abc", b"d", b"e", b"x"], "b'abcdex' with the tokens ab, bc, abc, cd, cde")
    expect_equal(solution(b"", ranks), [], "an empty text")
    ranks = get_encoding()._mergeable_ranks
    for word in (b" tokenization", b" literals", "深".encode()):
        wanted, rest = [], word
        while rest:
            wanted.append(max((rest[:n] for n in range(1, len(rest) + 1) if rest[:n] in ranks), key=len))
            rest = rest[len(wanted[-1]) :]
        expect_equal(solution(word, ranks), wanted, f"{word!r} with GPT-2's tokens")


@exercise
def split_digits(solution) -> None:
    """GPT-2's pieces with single digits."""
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    for text in TEXTS:
        found = solution(text)
        expect(isinstance(found, list), f"the pieces should be a list, and are {found!r}; is there a `return`?")
        lost = sorted(set(text) - set("".join(found)))
        expect(not lost, f"{text!r} became {found}: {', '.join(map(repr, lost))} got lost; some part has to take it")
        expect("".join(found) == text, f"{text!r} became {found}: laid end to end, that is not the text")
        for piece in found:
            digits = regex.findall(r"\p{N}", piece)
            expect(len(digits) < 2, f"{text!r} has the piece {piece!r} with {len(digits)} digits; each should be alone")
            expect(
                not digits or not piece[0].isspace(),
                f"{text!r} has the piece {piece!r}: the space should be a piece of its own",
            )
            expect(not digits or len(piece) == 1, f"{text!r} has the piece {piece!r}: the digit should be alone in it")
        expect_equal(found, pattern.findall(text), f"the list of pieces of {text!r}")


@exercise
def whole_characters(solution) -> None:
    """Text of whole characters, and the bytes that wait."""
    for text, last in (("naïve ", "👍"), ("", "深"), ("caf", "é"), ("ab", "c")):
        whole = last.encode()
        for n in range(len(whole) + 1):
            data = text.encode() + whole[:n]
            found = solution(data)
            expect(
                isinstance(found, tuple | list) and len(found) == 2,
                f"give two things, (text, rest); {data!r} gave {found!r}",
            )
            shown, rest = found
            expect(isinstance(shown, str), f"{data!r} gave the text {shown!r}: it should be a string; decode it")
            expect(isinstance(rest, bytes), f"{data!r} gave the rest {rest!r}: it should be bytes, still undecoded")
            expect(
                "\ufffd" not in shown,
                f"{data!r} gave the text {shown!r}: � stands for the unfinished character, which should wait",
            )
            expect(
                shown.encode() + rest == data,
                f"{data!r} gave {shown!r} and {rest!r}: bytes are lost, and the next token can't complete them",
            )
            wanted = (text + last, b"") if n == len(whole) else (text, whole[:n])
            expect(
                len(shown) >= len(wanted[0]),
                f"{data!r} gave {shown!r} and {rest!r}: more could be shown already, {wanted[0]!r}",
            )
            expect_equal((shown, rest), wanted, f"the result for {data!r}")


@exercise
def bits_per_byte(solution) -> None:
    """Nats per token → bits per byte."""
    loss, tokens, size = 3.0, 200, 900
    found = solution(loss, tokens, size)
    right = loss * tokens / size / math.log(2)
    case = "a loss of 3 over 200 tokens and 900 bytes"
    expect(found is not None, "the result is None; is there a `return`?")

    def is_near(value: float) -> bool:
        return math.isclose(found, value, rel_tol=1e-6)

    expect(not is_near(loss * tokens / size), f"{case} gave {found:.4g}: these are nats per byte, not yet bits")
    expect(not is_near(right * math.log(2) ** 2), f"{case} gave {found:.4g}: a nat is 1.44 bits, so divide by ln 2")
    expect(
        not is_near(loss * size / tokens / math.log(2)),
        f"{case} gave {found:.4g}: tokens and bytes are exchanged; a token's loss is shared out among its bytes",
    )
    expect(not is_near(loss / math.log(2)), f"{case} gave {found:.4g}: these are bits per token")
    expect(
        not is_near(loss / size / math.log(2)),
        f"{case} gave {found:.4g}: the loss is the mean of one token; the whole text has 200 of them",
    )
    expect_equal(float(found), right, case)
