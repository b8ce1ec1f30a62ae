"""HellaSwag: a model should give the true one of four endings the lowest loss after a context.

Source: Zellers et al., "HellaSwag: Can a Machine Really Finish Your Sentence?" (arXiv 1905.07830). Scored as the
published figures of GPT-2 124M are (acc 0.2859, acc_norm 0.2955). Guessing gives 0.25. Built in notebook 11.
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from annotated_types import Ge
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2.config.run import Precision
from gpt2.data.tokenizer import get_encoding
from gpt2.evaluation.validation import ending_losses, evaluating, token_losses
from gpt2.formats.load import encoding_of, from_pretrained
from gpt2.model import GPT, KVCache
from gpt2.modern.model import Modern
from gpt2.system.devices import choose_precision, set_matmul_precision
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, process_group
from gpt2.system.ranges import check_ranges

ON_THE_HUB = "Rowan/hellaswag"
ENDINGS = 4  # per item
BATCH_TOKENS = 4096  # positions per batch: enough to fill a GPU, few enough to spread the batches over eight
GROUP_PADDING = 16  # padded positions per group of endings: one more group costs about as much time


@dataclass(frozen=True)
class Item:
    """A context and four endings, of which `label` (0 … 3) is the true one."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Batch:
    """B encoded items whose contexts are equally long. Ending j of the batch's item i is `endings[4 * i + j]`."""

    index: Tensor  # (B,) places of the items in their list
    contexts: Tensor  # (B, T) tokens
    labels: Tensor  # (B,)
    endings: list[Tensor]  # 4 · B, each (L,) tokens

    @functools.cached_property
    def positions(self) -> int:
        """Positions that the model computes, padding apart. The last token of an ending predicts nothing."""
        return self.contexts.numel() + sum(len(ending) - 1 for ending in self.endings)


@dataclass(frozen=True)
class Result:
    """How many of `total` items the model got right by summed loss, and by mean loss per token.

    The summed loss (`acc`) favours short endings. The mean (`acc_norm`) does not.
    """

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

    Every line or row has `ctx`, four `endings` and a `label` from 0 to 3. Raises UserError if the file or dataset can't
    be read or is empty, and for the first malformed line, with its number.
    """
    is_file = Path(source).is_file() or Path(source).suffix in (".json", ".jsonl")
    rows = _rows_of_file(Path(source)) if is_file else _rows_of_dataset(source)
    items = [_item(row, place) for place, row in itertools.islice(rows, limit)]
    if not items:
        raise UserError(f"{source} holds no items; give a jsonl file with one item per line")
    return items


def _rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The place and the content of each line that is not blank."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"can't read {path} ({error.strerror}); give a jsonl file of HellaSwag items") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}); correct or delete it") from None


def _rows_of_dataset(name: str) -> Iterator[tuple[str, Any]]:
    """The place and the content of each row."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="validation")
    except Exception as error:  # offline, unknown name, no permission: these have no common base class
        raise UserError(
            f"the dataset {name} can't be loaded ({type(error).__name__}); give a local file with ctx, endings and "
            "label in every line (--items FILE, in training --eval.hellaswag FILE), or train with "
            "--eval.hellaswag-every 0"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def _item(row: Any, place: str) -> Item:
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
    """Encode the items and batch those with equally long contexts. Do this once, and score often.

    A batch has at most `batch_tokens` positions, or a single item. If context and ending have more than `block_size`
    tokens, the beginning of the context is cut off. Raises UserError for a block of one token.
    """
    if block_size < 2:
        raise UserError(f"a block of {block_size} token has no room for a context and an ending; give another model")
    encoding = get_encoding(vocab_size)
    singles = []  # batches of one item
    for i, item in enumerate(items):
        endings = [torch.tensor(encoding.encode_ordinary(" " + text)[: block_size - 1]) for text in item.endings]
        context = encoding.encode_ordinary(item.context) or [encoding.eot_token]
        context = context[max(map(len, endings)) - block_size :]
        singles.append(Batch(torch.tensor([i]), torch.tensor([context]), torch.tensor([item.label]), endings))
    singles.sort(key=lambda one: (one.contexts.size(1), one.positions))
    batches: list[Batch] = []
    for _, equally_long in itertools.groupby(singles, key=lambda one: one.contexts.size(1)):
        groups = _split(equally_long, batch_tokens, cost=lambda group: sum(one.positions for one in group))
        batches += [_join(group) for group in groups]
    return batches


def _join(batches: list[Batch]) -> Batch:
    index, contexts, labels, endings = zip(*((b.index, b.contexts, b.labels, b.endings) for b in batches), strict=True)
    return Batch(torch.cat(index), torch.cat(contexts), torch.cat(labels), list(itertools.chain(*endings)))


def group_endings(endings: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the endings, in groups of about equally long ones that are computed together."""

    def padding(group: list[int]) -> int:
        return sum(len(endings[group[0]]) - len(endings[number]) for number in group)

    longest_first = sorted(range(len(endings)), key=lambda number: -len(endings[number]))
    return _split(longest_first, GROUP_PADDING, padding)


def _split(sequence: Iterable[Any], limit: int, cost: Callable[[list[Any]], int]) -> list[list[Any]]:
    """Cut a sequence into groups, each as long as its cost is at most `limit`, or of one element."""
    groups: list[list[Any]] = []
    for element in sequence:
        if groups and cost([*groups[-1], element]) <= limit:
            groups[-1].append(element)
        else:
            groups.append([element])
    return groups


def score_batch(model: GPT | Modern, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed loss (nats) and mean loss (nats per token) of every ending after its context, each (B, 4) on the CPU.

    The contexts go through the model once, into the key-value cache. The endings follow, group by group.
    """
    device = next(model.parameters()).device
    B, T = batch.contexts.shape
    cache = model.new_cache(B, T)
    last = model.hidden(batch.contexts.to(device), cache)[:, -1:]  # (B, 1, C): predicts the first token of an ending
    groups, states, targets = group_endings(batch.endings), [], []
    for group in groups:
        tokens = pad_sequence([batch.endings[number] for number in group], batch_first=True).to(device)  # (E, L)
        lengths = torch.tensor([len(batch.endings[number]) for number in group], device=device)
        items = torch.tensor(group, device=device) // ENDINGS
        L = tokens.size(1)
        x = last[items]  # (E, 1, C)
        if L > 1:
            inside = model.hidden(tokens[:, :-1], _select(model, cache, items, T + L - 1))
            x = torch.cat([x, inside], dim=1)  # (E, L, C): position t predicts token t
        counts = torch.arange(L, device=device) < lengths[:, None]  # (E, L): padding does not count
        states.append(x[counts])
        targets.append(tokens[counts])
    losses = token_losses(model, torch.cat(states), torch.cat(targets)).cpu()
    lengths = torch.tensor([len(ending) for ending in batch.endings])
    order = list(itertools.chain(*groups))  # of the endings in `losses`
    sums = torch.zeros(B * ENDINGS)
    sums[order] = torch.stack([ending.sum() for ending in losses.split(lengths[order].tolist())])
    return sums.view(B, ENDINGS), (sums / lengths).view(B, ENDINGS)


def _select(model: GPT | Modern, cache: KVCache, rows: Tensor, length: int) -> KVCache:
    """A cache of `length` positions that begins with the sequences `rows` (N,) of another, repeated as listed."""
    selection = model.new_cache(len(rows), length)
    selection.position = cache.position
    for new, old in zip(selection.k + selection.v, cache.k + cache.v, strict=True):
        new[:, :, : cache.position] = old[rows]
    return selection


def _score_rows(model: GPT | Modern, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """As `score_batch`, for each batch. For CUDA: without a cache, in few shapes."""
    contexts = [context for batch in batches for context in batch.contexts.repeat_interleave(ENDINGS, dim=0)]
    endings = [ending for batch in batches for ending in batch.endings]
    sums = ending_losses(model, contexts, endings).view(-1, ENDINGS)
    means = sums / torch.tensor([len(ending) for ending in endings]).view(-1, ENDINGS)
    sizes = [len(batch.labels) for batch in batches]
    return zip(sums.split(sizes), means.split(sizes), strict=True)


def score_items(model: GPT | Modern, batches: Sequence[Batch], processes: Processes, precision: str) -> Result:
    """How many items the model gets right, over all processes; `prepare` makes the batches.

    `model` is neither compiled nor wrapped; its mode and gradients stay as they are. The result does not depend on the
    number of processes, apart from rounding on CUDA.
    """
    correct = correct_norm = total = 0
    largest_first = sorted(batches, key=lambda batch: -batch.positions)  # so that processes get about equal work
    own, cuda = largest_first[processes.rank :: processes.world_size], processes.device.type == "cuda"
    with evaluating(model, processes.device, precision):
        scores = _score_rows(model, own) if cuda else (score_batch(model, batch) for batch in own)
        for batch, (sums, means) in zip(own, scores, strict=True):
            correct += int((sums.argmin(dim=1) == batch.labels).sum())
            correct_norm += int((means.argmin(dim=1) == batch.labels).sum())
            total += len(batch.labels)
    return Result(*map(int, processes.sum(correct, correct_norm, total)))


@dataclass(frozen=True)
class Options:
    """HellaSwag: how often a model finds the true one of four endings the likeliest."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    items: str = ON_THE_HUB
    """A jsonl file with ctx, endings and label in every line, or a Hugging Face dataset (a name or a folder)."""
    limit: Annotated[int | None, Ge(1)] = None
    """Score only the first N items [all]."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware has instructions for it, else fp16 on CUDA, else fp32."""


def main(options: Options) -> None:
    """Run `report` in every process that torchrun started. Raises UserError also for values out of range."""
    check_ranges(options)
    with process_group() as processes:
        report(options, processes)


def report(options: Options, processes: Processes) -> None:
    """Score the model, and print one line from the first process. Raises UserError if model or items can't be read."""
    encoding_of(options.model)  # a missing model, or one of another tokenizer, is refused before anything is fetched
    items = load_items(options.items, options.limit)
    model = from_pretrained(options.model).to(processes.device)
    precision = choose_precision(processes.device, options.precision)
    set_matmul_precision(precision)
    batches = prepare(items, model.config.vocab_size, model.config.block_size)
    started = time.perf_counter()
    result = score_items(model, batches, processes, precision)
    speed = result.total / (time.perf_counter() - started)
    if processes.is_first:
        scores = f"acc {share(result.correct, result.total)} | acc_norm {share(result.correct_norm, result.total)}"
        print(f"{options.model}: HellaSwag {scores} | {speed:.1f} items/s, {precision}")


def share(right: int, total: int) -> str:
    """`2561/10042 = 0.2550 ± 0.0043`: the fraction of right items, and its standard error (of a binomial)."""
    p = right / total
    return f"{right}/{total} = {p:.4f} ± {math.sqrt(p * (1 - p) / total):.4f}"
