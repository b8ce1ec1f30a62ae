"""Checkers of notebook 10."""

from checks import exercise, expect, expect_equal

LINES = 'Home\nShop\n\n   \nIt rains.  \nDoes it?\nIt does!\nShe said "so."\nHe: "No!"\nA list:\nlast'
RECORDS = [
    {"name": name, "reached": reached}
    for name, reached in (
        ("val_000000.npy", [41, 0]),
        ("train_000001.npy", [98, 512]),
        ("train_000002.npy", [150, 77]),
        ("train_000003.npy", [203, 1024]),
    )
]


@exercise
def sentence_lines(solution) -> None:
    """Share of the non-empty lines that end in punctuation."""
    found = solution(LINES)
    expect(found is not None, "the share is None; is there a `return`?")
    expect(isinstance(found, int | float), f"the share should be a number, and is a {type(found).__name__}")
    expect(found != 5, "this is how many lines end in punctuation; divide by the number of lines")
    expect(
        abs(found - 5 / 11) > 1e-9,
        "5 of 11: empty lines are counted as lines. A line of spaces is empty, too; leave both out before you divide",
    )
    expect(
        abs(found - 4 / 9) > 1e-9,
        "4 of 9: the line 'It rains.  ' is missed. Take spaces away from its end before you look",
    )
    expect(abs(found - 3 / 9) > 1e-9, "3 of 9: lines that end in a closing quote are missed")
    expect_equal(float(found), 5 / 9, "for a text with 9 lines, 5 of which end in punctuation, the share")
    expect_equal(float(solution("'tis so'\nno")), 0.5, "for one line that ends in ' and one that ends in o, the share")
    try:
        nothing = solution("\n  \n")
    except ZeroDivisionError:
        nothing = None
    expect(nothing == 0, "a text with nothing but empty lines should give 0; divide by at least 1")


@exercise
def leaked(solution) -> None:
    """Number of validation documents that are in the training text, but for case and white space."""
    train = ["The cat sat.", "A  mat,\n a rug. ", "It rains.", "It rains.", "cat"]
    found = solution(["The cat sat.", "a mat, a rug.", "It rains.", "It snows.", "the cat"], train)
    expect(found is not None, "the number is None; is there a `return`?")
    expect(isinstance(found, int), f"a whole number is wanted, and this is a {type(found).__name__}")
    expect(found != 2, "2 of 5: only documents that are equal to the letter are found; ignore case and white space")
    expect(
        found != 4,
        "4 of 5: count documents of val, and compare whole ones. A text that is twice in train counts once, and "
        "'the cat' is not a document of train, only a part of one",
    )
    expect_equal(found, 3, "for 5 validation documents, 3 of which are in train, the number")
    found = solution(["The\ncat"], ["the cat"])
    expect(found == 1, "'The\\ncat' and 'the cat' should be equal: a line break is white space, too")
    found = solution(["thecat"], ["the cat"])
    expect(found == 0, "'thecat' and 'the cat' differ: a space between words must not vanish")
    found = solution(["It rains.", "It rains."], ["It rains."])
    expect(found == 2, f"two validation documents are in train, and this says {found}: count documents, not texts")


@exercise
def similarity_at(solution) -> None:
    """J at which 1 − (1 − J^hashes)^buckets is the chance."""
    found = solution(0.5, 14, 8)
    expect(found is not None, "the similarity is None; is there a `return`?")
    one_bucket = 1 - 0.5 ** (1 / 14)
    wanted = one_bucket ** (1 / 8)
    typical = {
        (1 - 0.5 ** (1 / 8)) ** (1 / 14): "buckets and hashes are exchanged: the outer power of the formula is the "
        "number of buckets, and it has to be undone first",
        one_bucket: f"{one_bucket:.4f} is J to the power of 8: the hashes of a bucket are not undone yet, take the "
        "root",
        (1 / 14) ** (1 / 8): "this is the rule of thumb (1 / buckets) ** (1 / hashes), which does not ask for the "
        "chance; solve the formula itself",
        1 - (1 - 0.5**8) ** 14: "this is the formula itself, from similarity to chance; the other way is asked for",
        (0.5 ** (1 / 14)) ** (1 / 8): "this is where one bucket misses the pair with the chance that it should find "
        "it: subtract from 1 before you take the root",
    }
    for value, sentence in typical.items():
        expect(abs(found - value) > 1e-6, sentence)
    expect_equal(float(found), wanted, "for a chance of 0.5 in 14 buckets of 8 hashes, the similarity")
    again = (1 - 0.1 ** (1 / 450)) ** (1 / 20)
    found = solution(0.9, 450, 20)
    swapped = (1 - 0.9 ** (1 / 450)) ** (1 / 20)
    expect(
        abs(found - swapped) > 1e-6,
        f"for a chance of 0.9 in 450 buckets of 20 this gives {found:.4f}, the place where a pair is missed with "
        "0.9: all buckets miss it with the probability 1 - chance",
    )
    expect_equal(float(found), again, "for a chance of 0.9 in 450 buckets of 20 hashes, the similarity")


@exercise
def go_on_from(solution) -> None:
    """Place in the source after the last shard of the unbroken row."""
    names = [record["name"] for record in RECORDS]

    def place(there: set[str]) -> list[int]:
        found = solution([dict(record) for record in RECORDS], there)
        expect(found is not None, "the place is None; is there a `return`, also where nothing is kept?")
        return list(found) if isinstance(found, list | tuple) else found

    found = place(set(names))
    expect(
        found != [150, 77],
        "all shards are there, and this goes on after the last but one: the last is whole, too",
    )
    expect_equal(found, [203, 1024], "with all shards there, the place")
    without = set(names) - {"train_000002.npy"}
    found = place(without)
    expect(
        found != [203, 1024],
        "train_000002.npy is gone, and this goes on after train_000003.npy: the text between would be lost. Stop at "
        "the first that is missing",
    )
    expect(
        found != [150, 77],
        "train_000002.npy is gone, and this goes on where it ended; it has to be made again, from where "
        "train_000001.npy ended",
    )
    expect_equal(found, [98, 512], "without train_000002.npy, the place")
    try:
        found = place(without - {"val_000000.npy"})
    except (IndexError, KeyError):
        found = None
    expect(
        found == [0, 0],
        f"without val_000000.npy, the first, the place is {found}; nothing can be kept, so it should be [0, 0]",
    )
