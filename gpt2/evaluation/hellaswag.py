"""HellaSwag, completion style: of four endings, the model should find the true one the least surprising.

Built in notebook 11.

An ending's score is its loss after the context. `acc` compares the summed loss, which favours short endings; `acc_norm`
the mean loss per token. Guessing gives 0.25. Items whose contexts are equally long go through the model together: the
contexts once, unpadded, into the key-value cache; then their endings, those of about equal length together.

Source: Zellers et al., "HellaSwag: Can a Machine Really Finish Your Sentence?" (arXiv 1905.07830); scored like the
published 124M figures (acc 0.2859, acc_norm 0.2955).
"""

import copy
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from gpt2.data.tokenizer import get_encoding
from gpt2.evaluation.validation import evaluating, token_losses
from gpt2.formats.load import from_pretrained
from gpt2.model import GPT, KVCache
from gpt2.modern.model import Modern
from gpt2.system.devices import choose_precision, set_matmul_precision
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, balance, process_group

ON_THE_HUB = "Rowan/hellaswag"
ENDINGS = 4
BATCH_TOKENS = 4096  # positions of a batch: enough to fill a GPU, few enough to spread over eight
PART_FILLING = 64  # positions that may be filled up in a part of it: a part more costs about as much time


@dataclass(frozen=True)
class Item:
    """A context and four endings, of which `label` (0 … 3) is the true one."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Part:
    """Endings of a batch that are computed together; ending j of its item i is number 4 · i + j."""

    numbers: Tensor  # (E,)
    tokens: Tensor  # (E, L), filled up with zeros on the right
    lengths: Tensor  # (E,)


@dataclass(frozen=True)
class Batch:
    """Encoded items whose contexts are equally long; `index` is their place in the list they come from."""

    index: Tensor  # (B,)
    contexts: Tensor  # (B, T)
    labels: Tensor  # (B,)
    parts: list[Part]

    @property
    def cost(self) -> int:
        """Positions that the model computes."""
        return self.contexts.numel() + sum(part.tokens[:, :-1].numel() for part in self.parts)


@dataclass(frozen=True)
class Result:
    """How many of `total` items the model got right by summed loss, and by mean loss per token."""

    correct: int
    correct_norm: int
    total: int

    @property
    def acc(self) -> float:
        return self.correct / self.total

    @property
    def acc_norm(self) -> float:
        return self.correct_norm / self.total


def load_items(source: str = ON_THE_HUB, limit: int | None = None) -> list[Item]:
    """The first `limit` items (default: all) of a jsonl file, or of a Hugging Face dataset's validation split.

    Every line or row has `ctx`, four `endings` and a `label` from 0 to 3. Raises UserError where there is no such file
    or dataset, where it is empty, or for the first malformed line, by its number.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is too few items to score; give at least 1")
    rows = _from_file(Path(source)) if _is_file(source) else _from_hub(source)
    items = [_checked(row, place) for place, row in itertools.islice(rows, limit)]
    if not items:
        raise UserError(f"{source} holds no items; give a jsonl file with one item a line")
    return items


def _is_file(source: str) -> bool:
    return Path(source).is_file() or Path(source).suffix in (".json", ".jsonl")


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank: where it is, and what it says."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"{path}, line {number}", json.loads(line)
                    except ValueError as error:
                        raise UserError(f"{path}, line {number} is not JSON ({error}); mend or delete it") from None
    except OSError as error:
        raise UserError(f"can't read {path} ({error.strerror}); give a jsonl file of HellaSwag items") from None


def _from_hub(name: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="validation")
    except Exception as error:  # offline, unknown name, no permission: no common base
        raise UserError(
            f"the dataset {name} can't be had ({type(error).__name__}); give a local file with ctx, endings and label "
            "in every line (--items FILE, in training --eval.hellaswag FILE), or train with --eval.hellaswag-every 0"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def _checked(row: Any, place: str) -> Item:
    """The row as an Item. Raises UserError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise UserError(f"{place} is not an object with ctx, endings and label")
    for field in ("ctx", "endings", "label"):
        if field not in row:
            raise UserError(f"{place} has no {field!r}; every item needs ctx, endings and label")
    context, endings, label = row["ctx"], row["endings"], str(row["label"])  # on the hub the label is a string
    if not isinstance(context, str):
        raise UserError(f"{place}: ctx is {context!r}, not text")
    if not isinstance(endings, list) or len(endings) != ENDINGS or not all(isinstance(e, str) for e in endings):
        raise UserError(f"{place}: endings is {endings!r}, not a list of {ENDINGS} texts")
    if label not in ("0", "1", "2", "3"):
        raise UserError(f"{place}: label is {row['label']!r}, not 0, 1, 2 or 3")
    return Item(context, tuple(endings), int(label))


def prepare(items: Sequence[Item], vocab_size: int, block_size: int, batch_tokens: int = BATCH_TOKENS) -> list[Batch]:
    """Encode the items and put those with equally long contexts together; do this once, and score often.

    A batch is of about `batch_tokens` positions, or of a single item. Where context and ending are more than
    `block_size` tokens, the context loses its beginning. Raises UserError for a block of one token.
    """
    if block_size < 2:
        raise UserError(f"a block of {block_size} token has no room for a context and an ending; give another model")
    encoding = get_encoding(vocab_size)
    groups: dict[int, list[_Encoded]] = {}  # by length of the context
    for i, item in enumerate(items):
        endings = [encoding.encode_ordinary(" " + ending)[: block_size - 1] for ending in item.endings]
        longest = max(map(len, endings))
        context = (encoding.encode_ordinary(item.context) or [encoding.eot_token])[longest - block_size :]
        groups.setdefault(len(context), []).append(_Encoded(i, context, endings, item.label))
    batches = []
    for length in sorted(groups):
        group = sorted(groups[length], key=_Encoded.ending_tokens)
        while group:
            costs = itertools.accumulate(length + one.ending_tokens() - ENDINGS for one in group)
            size = max(1, sum(cost <= batch_tokens for cost in costs))
            batches.append(_batch(group[:size]))
            group = group[size:]
    return batches


class _Encoded(NamedTuple):
    place: int  # in the list of items
    context: list[int]
    endings: list[list[int]]
    label: int

    def ending_tokens(self) -> int:
        return sum(map(len, self.endings))


def _batch(group: list[_Encoded]) -> Batch:
    numbered = enumerate(ending for one in group for ending in one.endings)
    return Batch(
        index=torch.tensor([one.place for one in group]),
        contexts=torch.tensor([one.context for one in group]),
        labels=torch.tensor([one.label for one in group]),
        parts=_parts(sorted(numbered, key=lambda ending: len(ending[1]))),
    )


def _parts(endings: list[tuple[int, list[int]]]) -> list[Part]:
    """Numbered endings, the shortest first, cut where filling them up would cost more than another part."""
    parts = []
    while endings:
        longest, size, filling = len(endings[-1][1]), 0, 0
        for _, ending in reversed(endings):
            filling += longest - len(ending)
            if filling > PART_FILLING:
                break
            size += 1
        chosen, endings = endings[-size:], endings[:-size]
        filled = [ending + [0] * (longest - len(ending)) for _, ending in chosen]
        lengths = torch.tensor([len(ending) for _, ending in chosen])
        parts.append(Part(torch.tensor([number for number, _ in chosen]), torch.tensor(filled), lengths))
    return parts


def score_batch(model: GPT | Modern, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed loss (nats) and mean loss (nats per token) of every ending after its context, each (B, 4) on the CPU."""
    device = next(model.parameters()).device
    B, T = batch.contexts.shape
    cache = model.new_cache(B, T)
    last = model.hidden(batch.contexts.to(device), cache)[:, -1:]  # (B, 1, C): what every first token follows
    states, targets, real = [], [], []
    for part in batch.parts:
        items, tokens, lengths = (part.numbers // ENDINGS).to(device), part.tokens.to(device), part.lengths.to(device)
        L = tokens.size(1)
        before = last[items]  # (E, 1, C)
        if L > 1:  # an ending's last token predicts nothing, so it is not computed
            inside = model.hidden(tokens[:, :-1], _select(cache, items, T + L - 1))
            before = torch.cat([before, inside], dim=1)  # (E, L, C): position t is what comes before token t
        counts = torch.arange(L, device=device) < lengths[:, None]  # (E, L): the filling does not
        states.append(before[counts])
        targets.append(tokens[counts])
        real.append(counts)
    losses = token_losses(model, torch.cat(states), torch.cat(targets)).split([len(one) for one in targets])
    sums, lengths = torch.zeros(B * ENDINGS), torch.zeros(B * ENDINGS)
    for part, counts, nats in zip(batch.parts, real, losses, strict=True):
        sums[part.numbers] = torch.zeros(counts.shape, device=device).masked_scatter(counts, nats).sum(dim=1).cpu()
        lengths[part.numbers] = part.lengths.float()
    return sums.view(B, ENDINGS), (sums / lengths).view(B, ENDINGS)


def _select(cache: KVCache, rows: Tensor, length: int) -> KVCache:
    """A copy of the sequences `rows` (N,) of a cache, as often as they are named, with room for `length` positions."""
    chosen = copy.copy(cache)
    chosen.length, room = length, (0, 0, 0, length - cache.position)
    chosen.k = [F.pad(k[rows, :, : cache.position], room) for k in cache.k]
    chosen.v = [F.pad(v[rows, :, : cache.position], room) for v in cache.v]
    return chosen


def score_items(model: GPT | Modern, batches: Sequence[Batch], processes: Processes, precision: str) -> Result:
    """How many items the model gets right, over all processes; the batches are those of `prepare`.

    `model` is the plain one, neither compiled nor wrapped; its mode and gradients are left as they are. The batches
    are the same for any number of processes, so the result is too.
    """
    correct = correct_norm = total = 0
    with evaluating(model, processes.device, precision):
        for batch in deal(batches, processes.world_size)[processes.rank]:
            sums, means = score_batch(model, batch)
            correct += int((sums.argmin(dim=1) == batch.labels).sum())
            correct_norm += int((means.argmin(dim=1) == batch.labels).sum())
            total += len(batch.labels)
    return Result(*map(int, processes.sum(correct, correct_norm, total)))


def deal(batches: Iterable[Batch], hands: int) -> list[list[Batch]]:
    """The batches in `hands` piles of about equal cost: the dearest first, each to the pile that has least."""
    batches = list(batches)
    piles: list[list[Batch]] = [[] for _ in range(hands)]
    for batch, owner in zip(batches, balance([batch.cost for batch in batches], hands), strict=True):
        piles[owner].append(batch)
    return piles


@dataclass(frozen=True)
class Options:
    """HellaSwag: how often a model finds the true one of four endings the likeliest."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    items: str = ON_THE_HUB
    """A jsonl file with ctx, endings and label in every line, or a Hugging Face dataset (a name or a folder)."""
    limit: int | None = None
    """Score only the first N items [all]."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """auto: bf16 where the hardware has instructions for it, else fp16 on CUDA, else fp32."""


def main(options: Options) -> None:
    """Score, and print one line from the first process. Raises UserError where model or items can't be had."""
    with process_group() as processes:
        report(options, processes)


def report(options: Options, processes: Processes) -> None:
    """Score, and print one line from the first process. Raises UserError where model or items can't be had."""
    items = load_items(options.items, options.limit)
    model = from_pretrained(options.model).to(processes.device)
    precision = choose_precision(processes.device, options.precision)
    set_matmul_precision(precision)
    batches = prepare(items, model.config.vocab_size, model.config.block_size)
    started = time.perf_counter()
    result = score_items(model, batches, processes, precision)
    speed = result.total / (time.perf_counter() - started)
    if processes.is_first:
        counts = (("acc", result.correct), ("acc_norm", result.correct_norm))
        scores = " | ".join(f"{name} {share(right, result.total)}" for name, right in counts)
        print(f"{options.model}: HellaSwag {scores} | {speed:.1f} items/s, {precision}")


def share(right: int, total: int) -> str:
    """`2561/10042 = 0.2550 ± 0.0043`: the fraction, and the standard error of a binomial one."""
    p = right / total
    return f"{right}/{total} = {p:.4f} ± {math.sqrt(p * (1 - p) / total):.4f}"
