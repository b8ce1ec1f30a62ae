"""HellaSwag is scored as one item at a time would be, over any number of processes, and harms no training run."""

import contextlib
import itertools
import json
import random
import re
from dataclasses import astuple

import pytest
import torch
from conftest import run_python
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

from gpt2 import __main__ as gpt2_command
from gpt2.data.tokenizer import get_encoding
from gpt2.evaluation import validation
from gpt2.evaluation.hellaswag import (
    GROUP_PADDING,
    Item,
    Options,
    Result,
    _score_rows,
    _select,
    group_endings,
    load_items,
    main,
    prepare,
    score_batch,
    score_items,
)
from gpt2.evaluation.validation import _group_by_length
from gpt2.formats.huggingface import save_pretrained
from gpt2.model import GPT, GPTConfig
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

ONE = Processes(0, 0, 1, torch.device("cpu"))
VOCAB, BLOCK = 300, 64
WHO = ["A baker", "The old sailor", "She", "A girl with a red kite", "My uncle", "The crowd in the narrow street"]
DOES = ["waits.", "opens the oven", "ties a knot", "runs up the hill", "looks at the map and counts", "sings"]
THEN = ["then stops.", "and the rope holds.", "while it rains", "bread.", "to see how far the harbour is.", "twice"]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Contexts of many lengths, some of them equal, endings of one word to a dozen; a few too long for the block."""
    draw = random.Random(0)

    def endings() -> tuple[str, ...]:
        """Four different ones: the scores of equal ones differ by rounding alone."""
        drawn: dict[str, None] = {}
        while len(drawn) < 4:
            drawn[" ".join(draw.choice(DOES + THEN) for _ in range(draw.randint(1, 2)))] = None
        return tuple(drawn)

    items = [Item(f"{draw.choice(WHO)} {draw.choice(DOES)}", endings(), draw.randrange(4)) for _ in range(36)]
    items.append(Item(" ".join(WHO), items[0].endings, 1))
    items.append(Item("He", (" ".join(WHO), "a", " ".join(DOES + THEN), "b"), 0))
    items.append(Item("", ("x", "y", "z", "t"), 3))
    return items


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=BLOCK, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def plain(model, items, tmp_path_factory) -> tuple[Tensor, Tensor]:
    """Summed and mean losses (items, 4) by `transformers`, one ending at a time: no padding, no cache, no batch."""
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("plain")
    save_pretrained(model, folder)
    theirs, encoding = GPT2LMHeadModel.from_pretrained(folder).eval(), get_encoding(VOCAB)
    losses = []
    for item in items:
        endings = [encoding.encode_ordinary(" " + ending)[: BLOCK - 1] for ending in item.endings]
        room = BLOCK - max(map(len, endings))
        context = (encoding.encode_ordinary(item.context) or [encoding.eot_token])[-room:]
        for ending in endings:
            with torch.no_grad():
                logits = theirs(torch.tensor([context + ending])).logits[0, -len(ending) - 1 : -1]
            losses.append(F.cross_entropy(logits, torch.tensor(ending), reduction="none"))
    sums, means = (torch.stack([reduce(one) for one in losses]).view(-1, 4) for reduce in (torch.sum, torch.mean))
    return sums, means


def scores(model, items, **settings) -> tuple[Tensor, Tensor]:
    sums, means = torch.zeros(2, len(items), 4)
    with torch.no_grad():
        for batch in prepare(items, VOCAB, BLOCK, **settings):
            sums[batch.index], means[batch.index] = score_batch(model, batch)
    return sums, means


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
def test_every_ending_is_scored_as_transformers_scores_it_alone(model, items, plain, batch_tokens):
    for ours, theirs in zip(scores(model, items, batch_tokens=batch_tokens), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_acc_is_by_sum_and_acc_norm_by_mean(model, items, plain):
    labels = torch.tensor([item.label for item in items])
    by_sum, by_mean = (int((one.argmin(dim=1) == labels).sum()) for one in plain)
    assert by_sum != by_mean  # else this test could not tell them apart
    result = score_items(model, prepare(items, VOCAB, BLOCK), ONE, "fp32")
    assert (result.correct, result.correct_norm, result.total) == (by_sum, by_mean, len(items))
    assert (result.acc, result.acc_norm) == (by_sum / len(items), by_mean / len(items))


def test_bf16_scores_are_near(model, items, plain):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, means = scores(model, items)
    torch.testing.assert_close(means, plain[1], atol=0.1, rtol=0.02)


def test_a_selection_of_a_cache_continues_its_contexts(model):
    context, endings, rows = torch.randint(VOCAB, (3, 7)), torch.randint(VOCAB, (5, 4)), torch.tensor([2, 0, 2, 2, 0])
    cache = model.new_cache(3, 7)
    with torch.no_grad():
        model.hidden(context, cache)
        for _ in range(2):  # the first selection leaves the cache as it was
            cached = model(endings, cache=_select(model, cache, rows, 11))
            uncached = model(torch.cat([context[rows], endings], dim=1))[:, 7:]
            torch.testing.assert_close(cached, uncached, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", [1, 200, 10**6])
def test_on_cuda_every_ending_is_scored_as_transformers_scores_it_alone(model, items, plain, monkeypatch, positions):
    monkeypatch.setattr(validation, "GROUP_POSITIONS", positions)
    batches = prepare(items, VOCAB, BLOCK)
    with torch.no_grad():
        scores = list(_score_rows(model, batches))
    order = torch.cat([batch.index for batch in batches])
    for ours, theirs in zip(zip(*scores, strict=True), plain, strict=True):
        torch.testing.assert_close(torch.cat(ours), theirs[order], atol=1e-4, rtol=1e-4)


def test_on_cuda_the_result_is_that_on_a_cpu(model, items, monkeypatch):
    """The model stays on the CPU. Only the name of the device is the other one."""
    batches = prepare(items, VOCAB, BLOCK, batch_tokens=200)
    expected = score_items(model, batches, ONE, "fp32")
    monkeypatch.setattr("gpt2.evaluation.hellaswag.score_batch", None)  # a call would fail
    results = [score_items(model, batches, Share(rank, rank, 3, torch.device("cuda")), "fp32") for rank in range(3)]
    assert [sum(counts) for counts in zip(*map(astuple, results), strict=True)] == list(astuple(expected))
    assert score_items(model, batches[:1], Share(1, 1, 2, torch.device("cuda")), "fp32") == Result(0, 0, 0)


def test_on_cuda_the_shapes_are_few_and_the_padding_is_little():
    """cuDNN attention plans every new shape for about 0.4 s. Lengths as in HellaSwag's 40,168 endings."""
    draw = random.Random(0)
    lengths = [max(8, int(draw.gauss(105, 20) if draw.random() < 0.68 else draw.gauss(50, 15))) for _ in range(40_168)]
    groups = _group_by_length(lengths, 1024)
    assert sorted(itertools.chain(*(numbers for _, numbers in groups))) == list(range(len(lengths)))
    assert all(lengths[number] <= length < lengths[number] + 32 for length, numbers in groups for number in numbers)
    assert all(length * len(numbers) <= 32_768 for length, numbers in groups)
    assert len({(length, len(numbers)) for length, numbers in groups}) < 20 and len(groups) < 160


def test_padding_never_exceeds_the_block():
    assert _group_by_length([5, 39, 40], 40) == [(40, [1, 2]), (32, [0])]


def test_batches_hold_equally_long_contexts_and_little_padding(items):
    batches = prepare(items, VOCAB, BLOCK, batch_tokens=400)
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(len(items)))
    assert any(len(batch.index) > 1 for batch in batches) and len(batches) < len(items)
    longest, sizes = 0, []
    for batch in batches:
        groups = group_endings(batch.endings)
        for group in groups:
            lengths = [len(batch.endings[number]) for number in group]
            assert sum(max(lengths) - length for length in lengths) <= GROUP_PADDING
        assert batch.positions <= 400 or len(batch.index) == 1
        assert sorted(itertools.chain(*groups)) == list(range(4 * len(batch.index)))
        longest = max(longest, batch.contexts.size(1) + max(map(len, batch.endings)))
        sizes.append([len(group) for group in groups])
    assert longest == BLOCK
    assert any(len(groups) > 1 for groups in sizes) and any(max(groups) > 4 for groups in sizes)


class Share(Processes):
    """One of several processes that keeps its sums to itself, so that a test can add them up."""

    def sum(self, *values):
        return list(values)


@contextlib.contextmanager
def count_positions(model):
    """The positions of every forward pass, in a list that is filled while the block runs."""
    counted: list[int] = []
    watch = model.transformer.wte.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].numel()))
    yield counted
    watch.remove()


def test_every_batch_is_scored_by_one_process_and_all_compute_about_equally_much(model, items):
    batches = prepare(items, VOCAB, BLOCK, batch_tokens=200)
    positions: list[int] = []  # per process
    results = []
    for rank in range(3):
        with count_positions(model) as counted:
            results.append(score_items(model, batches, Share(rank, rank, 3, ONE.device), "fp32"))
        positions.append(sum(counted))
    whole = score_items(model, batches, ONE, "fp32")
    assert [sum(counts) for counts in zip(*map(astuple, results), strict=True)] == list(astuple(whole))
    assert max(positions) - min(positions) <= 1.2 * max(batch.positions for batch in batches)  # 0.2: padding


def test_contexts_are_computed_once_and_endings_without_their_last_token(model, items):
    batches = prepare(items, VOCAB, BLOCK)
    with count_positions(model) as counted:
        score_items(model, batches, ONE, "fp32")
    padding = 64 * sum(len(group_endings(batch.endings)) for batch in batches)
    assert 0 <= sum(counted) - sum(batch.positions for batch in batches) <= padding


def test_a_process_without_a_batch_counts_nothing(model, items):
    batches = prepare(items[:1], VOCAB, BLOCK)
    assert score_items(model, batches, Share(1, 1, 2, ONE.device), "fp32") == Result(0, 0, 0)


def test_a_compiled_training_run_notices_nothing(model, items):
    """Nothing is compiled again, and the gradients gathered so far stay as they were."""
    compiled = torch.compile(model, backend="eager", dynamic=False)
    x = torch.randint(VOCAB, (2, BLOCK))
    try:
        compiled(x, x).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        graphs = counters["stats"]["unique_graphs"]
        score_items(model, prepare(items, VOCAB, BLOCK), ONE, "fp32")
        assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
        compiled(x, x).backward()
        assert counters["stats"]["unique_graphs"] == graphs > 0
    finally:
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("training", [True, False])
def test_it_scores_in_evaluation_mode_and_restores_the_mode(model, items, training):
    modes: list[bool] = []
    watch = model.transformer.h[0].register_forward_pre_hook(lambda block, _: modes.append(block.training))
    model.train(training)
    score_items(model, prepare(items, VOCAB, BLOCK), ONE, "fp32")
    watch.remove()
    assert modes and not any(modes)
    assert all(module.training == training for module in model.modules())


def write(path, items: list[Item]):
    lines = [json.dumps({"ctx": i.context, "endings": i.endings, "label": i.label, "ind": 7}) for i in items]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_two_processes_count_what_one_does(model, items, tmp_path):
    save_pretrained(model, tmp_path / "model")
    words = ("-m", "gpt2", "hellaswag", tmp_path / "model", "--items", write(tmp_path / "items.jsonl", items))
    printed = run_python(*words, "--precision", "fp32", processes=2).stdout
    one = score_items(model, prepare(items, VOCAB, BLOCK), ONE, "fp32")
    assert printed.count("HellaSwag") == 1
    assert re.findall(r"(\d+)/39 = ([\d.]+) ± 0\.0\d+", printed) == [
        (str(one.correct), f"{one.acc:.4f}"),
        (str(one.correct_norm), f"{one.acc_norm:.4f}"),
    ]


def test_a_file_gives_its_items(items, tmp_path):
    path = write(tmp_path / "items.jsonl", items)
    assert load_items(str(path)) == items
    assert load_items(str(path), limit=3) == items[:3]


def test_a_dataset_gives_its_validation_split(items, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    rows = [{"ctx": i.context, "endings": i.endings, "label": str(i.label)} for i in items[:5]]
    (tmp_path / "set" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_items(str(tmp_path / "set")) == items[:5]


def test_a_dataset_that_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"can't be loaded .* give a local file .*--items FILE"):
        load_items(str(tmp_path))


GOOD = {"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"ctx": "a", "endi', "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        ("[1, 2]", "is not an object"),
        (json.dumps({"ctx": "a", "endings": GOOD["endings"]}), "has no 'label'"),
        (json.dumps({**GOOD, "ctx": None}), "ctx is None, not text"),
        (json.dumps({**GOOD, "endings": ["b", "c", "d"]}), "not a list of 4 texts"),
        (json.dumps({**GOOD, "endings": ["b", "c", "d", 5]}), "not a list of 4 texts"),
        (json.dumps({**GOOD, "label": 4}), "label is 4, not 0, 1, 2 or 3"),
        (json.dumps({**GOOD, "label": ""}), "label is '', not 0, 1, 2 or 3"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, says):
    path = tmp_path / "items.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, b"", line if isinstance(line, bytes) else line.encode(), good]))
    with pytest.raises(UserError) as caught:
        load_items(str(path))
    assert f"{path}, line 3" in str(caught.value) and says in str(caught.value)
    assert len(load_items(str(path), limit=1)) == 1  # what is not read is not judged


def test_files_without_items_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl holds no items"):
        load_items(str(empty))
    with pytest.raises(UserError, match=r"can't read .*missing.jsonl"):
        load_items(str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match=r"--limit 0 is out of range; give 1 or more"):
        main(Options("nowhere", limit=0))


def test_the_command_refuses_in_one_sentence(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(GOOD) + "\n{}\n")
    with pytest.raises(UserError) as caught:
        gpt2_command.main(["hellaswag", "novels", "--items", str(bad)])
    assert str(caught.value) == f"{bad}, line 2 has no 'ctx'; every item needs ctx, endings and label"


def test_the_model_is_looked_at_before_the_data_set(tmp_path, monkeypatch):
    """The data set may take half a minute of retries, and the weights of a model gigabytes of memory."""
    monkeypatch.setattr("gpt2.evaluation.hellaswag.load_items", None)  # a call would fail
    with pytest.raises(UserError, match=f"{tmp_path} holds no model"):
        gpt2_command.main(["hellaswag", str(tmp_path)])
    monkeypatch.setattr("gpt2.evaluation.report.from_pretrained", None)
    with pytest.raises(UserError, match="no val shards in"):
        gpt2_command.main(["evaluate", "novels", "--shards", str(tmp_path)])


def test_a_block_of_one_token_is_refused(items):
    with pytest.raises(UserError, match="a block of 1 token"):
        prepare(items, VOCAB, 1)
