"""Evaluation is of the same text always, counts every token once, and compares fairly with compressors."""

import bz2
import gzip
import lzma
import math
import re

import numpy as np
import pytest
import torch
from conftest import make_shards, run_python, train
from torch.nn import functional as F

from gpt2.data.loader import Sequences
from gpt2.data.shards import find_shards, write_shard
from gpt2.data.tokenizer import get_encoding, token_bytes
from gpt2.evaluation import validation
from gpt2.evaluation.report import Options, compressed_bits_per_byte, report
from gpt2.evaluation.validation import HeldOut, Measured, measure, validate
from gpt2.formats.huggingface import save_pretrained
from gpt2.model import GPT, GPTConfig
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

ONE = Processes(0, 0, 1, torch.device("cpu"))
SIZES = token_bytes(get_encoding(257))
T = 16


class Alone(Processes):
    """One of several processes that keeps its sums to itself, so that a test can add them up."""

    def sum(self, *values):
        return [float(value) or 1.0 for value in values]  # a share may have no text


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sequences(data) -> Sequences:
    return Sequences(find_shards(data, "val"), T)


def held_out(tokens: int, sequences: Sequences) -> HeldOut:
    return HeldOut(sequences, tokens, SIZES)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=T, vocab_size=257, n_layer=2, n_head=2, n_embd=32)).requires_grad_(False)
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    model.transformer.wte.weight[:257, 0] = torch.linspace(4, -4, 257)  # low tokens are frequent in the text,
    model.transformer.ln_f.bias[0] = 2  # and the model knows it
    return model


@pytest.mark.parametrize(("tokens", "micro"), [(16, 1), (160, 4), (176, 4), (10**6, 7)])
def test_the_loss_is_the_mean_over_all_tokens_whatever_the_micro_batch(data, sequences, model, tokens, micro):
    line = np.load(data / "val_000000.npy")
    count = min(tokens, 1488)
    x = torch.from_numpy(line[:count].astype(np.int64)).view(-1, T)
    y = torch.from_numpy(line[1 : count + 1].astype(np.int64)).view(-1, T)
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    shapes = set()

    def loss_of(x, y):
        shapes.add(x.shape)
        return model(x, y)

    loss, bits = validate(loss_of, held_out(tokens, sequences), micro, ONE)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert bits == pytest.approx(expected * count / np.log(2) / SIZES[y].sum(), abs=1e-5)
    assert shapes == {(micro, T)}  # one shape: a compiled model never compiles again


def test_every_process_calls_the_model_equally_often(sequences, model):
    """A sharded model gathers its weights from all processes in each call; one that calls less hangs the others."""
    for count in (4, 5, 6, 7):  # sequences, dealt two at a time to three processes
        calls: list[list[float]] = [[], [], []]
        for rank, mine in enumerate(calls):

            def loss_of(x, y, mine=mine):
                mine.append(model(x, y).item())
                return torch.tensor(mine[-1])

            validate(loss_of, held_out(count * T, sequences), 2, Alone(rank, rank, 3, ONE.device))
        assert [len(mine) for mine in calls] == [-(-count // 6)] * 3
        assert all(math.isfinite(loss) for mine in calls for loss in mine)


def by_hand(model: GPT, line: np.ndarray, tokens: int, n: int) -> Measured:
    """All windows spelt out, all their logits at once."""
    ends = range(T, T + tokens // n * n, n)  # of each window's inputs; the target of the last lies there
    windows = torch.tensor([line[end - T : end + 1].tolist() for end in ends])
    logits, targets = model(windows[:, :-1])[:, -n:].flatten(0, 1), windows[:, -n:].flatten()
    loss = F.cross_entropy(logits, targets).item()
    ranks = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    text_bytes = int(SIZES[targets].sum())
    bits = loss * len(targets) / math.log(2) / text_bytes
    top1, top10 = ((ranks < k).double().mean().item() for k in (1, 10))
    return Measured(loss, bits, top1, top10, len(targets), text_bytes)


@pytest.mark.parametrize(("last_n", "micro", "tokens"), [(None, 3, 16 * 10), (16, 1, 170), (5, 4, 203), (1, 7, 30)])
def test_measure_equals_the_windows_spelt_out(data, sequences, model, last_n, micro, tokens):
    expected = by_hand(model, np.load(data / "val_000000.npy"), tokens, last_n or T)
    found = measure(model, held_out(tokens, sequences), micro, ONE, "fp32", last_n)
    assert vars(found) == pytest.approx(vars(expected), abs=1e-5)
    assert 0 < found.top1 < found.top10 < 1


def test_the_windows_end_where_the_text_does(data, sequences, model):
    for n in (T, 7):
        found = measure(model, held_out(10**9, sequences), 8, ONE, "fp32", n)
        assert found.tokens == (1500 - 1 - T) // n * n + n
        assert found.loss == pytest.approx(by_hand(model, np.load(data / "val_000000.npy"), found.tokens, n).loss)


def test_the_shares_of_the_processes_add_up_to_the_whole(sequences, model):
    whole = measure(model, held_out(25 * 6, sequences), 4, ONE, "fp32", 6)
    text, ranks = held_out(25 * 6, sequences), [Alone(rank, rank, 3, ONE.device) for rank in range(3)]
    parts = [measure(model, text, 4, rank, "fp32", 6) for rank in ranks]
    assert {part.tokens for part in parts} == {whole.tokens}
    for name in ("loss", "top1", "top10", "text_bytes"):
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(whole, name))


def test_successive_evaluations_are_of_the_same_text(sequences, model):
    seen: list[torch.Tensor] = []
    watch = model.transformer.wte.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    first, second = (measure(model, held_out(160, sequences), 4, ONE, "fp32") for _ in range(2))
    half = len(seen) // 2
    losses = [validate(model, held_out(160, sequences), 4, ONE) for _ in range(2)]
    watch.remove()
    assert first == second and losses[0] == losses[1]
    assert half and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half : 2 * half], strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_it_measures_in_evaluation_mode_and_restores_the_mode(sequences, model, training):
    modes: list[tuple[bool, bool]] = []
    block = model.transformer.h[0]
    watch = block.register_forward_pre_hook(lambda block, _: modes.append((block.training, torch.is_grad_enabled())))
    model.train(training)
    measure(model, held_out(160, sequences), 4, ONE, "fp32")
    watch.remove()
    assert set(modes) == {(False, False)}
    assert all(module.training == training for module in model.modules())


def test_no_more_logits_than_a_chunk_exist_at_a_time(sequences, model, monkeypatch):
    whole = measure(model, held_out(160, sequences), 8, ONE, "fp32")
    rows: list[int] = []
    head = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, x: (rows.append(len(x)), head(self, x))[1])
    monkeypatch.setattr(validation, "CHUNK_LOGITS", 7 * 320)  # the token embedding has 320 rows
    assert vars(measure(model, held_out(160, sequences), 8, ONE, "fp32")) == pytest.approx(vars(whole))
    assert max(rows) == 7 and sum(rows) == 160


def test_the_host_waits_for_the_device_once(sequences, model, monkeypatch):
    """However many chunks and micro-batches there are, numbers are read from the device equally often."""
    monkeypatch.setattr(validation, "CHUNK_LOGITS", 7 * 320)
    reads: list[str] = []
    for name in ("cpu", "item", "tolist", "numpy", "__int__", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for tokens in (T, 10 * T, 80 * T):
        for evaluate in (
            lambda text: measure(model, text, 4, ONE, "fp32"),
            lambda text: validate(model, text, 4, ONE),
        ):
            reads.clear()
            evaluate(held_out(tokens, sequences))
            counts.append(tuple(reads))
    assert len(set(counts[::2])) == len(set(counts[1::2])) == 1
    assert all(reads.count("cpu") == 1 for reads in counts)


def test_perplexities_are_the_exponentials():
    found = Measured(math.log(50), 2.0, 0.1, 0.2, 10, 20)
    assert (found.perplexity, found.perplexity_per_byte) == (pytest.approx(50), 4)


def test_compressors_see_the_same_bytes():
    text = b"def f(x):\n    return x\n" * 50
    expected = {"gzip": gzip.compress(text), "bz2": bz2.compress(text), "xz": lzma.compress(text, preset=9)}
    assert compressed_bits_per_byte(text) == {name: 8 * len(b) / len(text) for name, b in expected.items()}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of train_gpt2.py."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(data, folder)
    return folder


def test_the_command_repeats_the_runs_last_validation(run):
    done = run_python("-m", "gpt2", "evaluate", run).stdout
    last = re.findall(r"val loss: ([\d.]+) \| bits/byte: ([\d.]+)", (run / "log.txt").read_text())[-1]
    assert float(re.search(r"loss ([\d.]+)", done)[1]) == pytest.approx(float(last[0]), abs=2e-4)
    assert float(re.search(r"model ([\d.]+)", done)[1]) == pytest.approx(float(last[1]), abs=2e-3)
    assert all(name in done for name in ("gzip", "bz2", "xz", "perplexity per token", "top-1"))


def test_two_processes_measure_a_hugging_face_folder_as_one_does(model, data, sequences, tmp_path):
    save_pretrained(model, tmp_path)
    flags = ("--shards", data, "--last-n", "5", "--tokens", "203", "--precision", "fp32")
    done = run_python("-m", "gpt2", "evaluate", tmp_path, *flags, processes=2).stdout
    one = measure(model, held_out(203, sequences), 3, ONE, "fp32", 5)
    assert done.count("nats per token") == 1
    assert f"loss {one.loss:.4f} nats per token on 200 held-out tokens, the last 5 of every 16" in done
    assert f"perplexity per token {one.perplexity:.2f}, per byte {one.perplexity_per_byte:.4f}" in done
    assert f"accuracy top-1 {one.top1:.4f}, top-10 {one.top10:.4f}" in done
    assert f"on the same 200 bytes: model {one.bits_per_byte:.3f} | gzip" in done


def test_the_test_split_is_measured_if_it_is_asked_for(model, data, tmp_path, capsys):
    save_pretrained(model, tmp_path / "model")
    write_shard(tmp_path / "test_000000.npy", np.load(data / "val_000000.npy")[200:800])
    flags = {"model": str(tmp_path / "model"), "shards": str(tmp_path), "precision": "fp32"}
    report(Options(**flags, split="test"), ONE)
    text = HeldOut(Sequences(find_shards(tmp_path, "test"), T), 600, SIZES)
    assert f"loss {measure(model, text, 8, ONE, 'fp32').loss:.4f} nats" in capsys.readouterr().out
    with pytest.raises(UserError, match="no val shards"):
        report(Options(**flags), ONE)
    with pytest.raises(UserError, match=f"no test shards.*--source stories --vocab-size 257 --test --out {data}"):
        report(Options(**{**flags, "shards": str(data)}, split="test"), ONE)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tokens": 5}, "--tokens 5 of 1,500 held-out tokens is less than one sequence of 16 tokens with 16 to score"),
        ({"last_n": 17}, "last-n 17 does not fit a window; give 1 to 16"),
        ({"shards": None}, "is not a run folder, so it names no text; add --shards DATA"),
        ({"model": "data"}, "holds no model"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, data, tmp_path, flags, says):
    save_pretrained(model, tmp_path)
    flags = {"model": str(tmp_path), "shards": str(data), **flags}
    flags["model"] = str(data) if flags["model"] == "data" else flags["model"]
    with pytest.raises(UserError, match=re.escape(says)):
        report(Options(**flags), ONE)


def test_the_command_refuses_in_one_sentence(tmp_path):
    done = run_python("-m", "gpt2", "evaluate", tmp_path, "--last-n", "0", check=False)
    assert (done.returncode, done.stderr) == (2, "error: --last-n 0 is out of range; give 1 or more\n")
