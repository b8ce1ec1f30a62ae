"""`train_gpt2.py` run as a person runs it: one truth for every layout, kind errors, and a log that is right."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, command, make_shards, run_python, train, train_words
from safetensors.torch import load_file

import gpt2.training.execution
from gpt2 import __main__ as gpt2_command
from gpt2.config.presets import PRESETS
from gpt2.config.run import System, from_json, to_json
from gpt2.data.shards import write_index, write_shard
from gpt2.formats.build import build, make_config
from gpt2.logs.reader import read_log
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes
from gpt2.training.distributed import cast_in_use, multiply_in_fp8


def test_one_process_of_eight_micro_steps_equals_two_of_four(shards, tmp_path):
    """And any micro-batch: same tokens, learning rates, losses and norms, on data that crosses shard ends."""
    layouts = {"1x8": (1, "2"), "2x4": (2, "2"), "1x1": (1, "16"), "2x8": (2, "1")}
    logs = {}
    for name, (processes, micro) in layouts.items():
        train(shards, tmp_path / name, "--system.micro-batch", micro, "--data.seed", "7", processes=processes)
        logs[name] = read_log(tmp_path / name / "log.txt")
    for name, log in logs.items():
        assert len(log.loss) == 20, name
        np.testing.assert_allclose(log.loss, logs["1x8"].loss, atol=1e-5, rtol=0)
        np.testing.assert_allclose(log.norm, logs["1x8"].norm, atol=2e-4, rtol=0)
        np.testing.assert_allclose(log.val_loss, logs["1x8"].val_loss, atol=1e-4, rtol=0)
        np.testing.assert_array_equal(log.lr, logs["1x8"].lr)
    assert logs["1x8"].loss[-1] < logs["1x8"].loss[0] - 0.2


FIFTY = ("--schedule.steps", "50", "--system.micro-batch", "1", "--log.norms-every", "10")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """50 steps in one process."""
    shards = make_shards(tmp_path_factory.mktemp("zero"))
    train(shards, shards / "alone", *FIFTY)
    return shards


@pytest.mark.parametrize(("processes", "zero"), [(2, 0), (2, 1), (2, 2), (2, 3), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_what_is_divided_over_processes_changes_no_number(alone, tmp_path, processes, zero):
    """Losses, the true global gradient norm, norms of layers, validation, and the exported weights."""
    train(alone, tmp_path / "run", *FIFTY, "--system.zero", str(zero), processes=processes)
    one, many = (read_log(folder / "log.txt") for folder in (alone / "alone", tmp_path / "run"))
    np.testing.assert_allclose(many.loss, one.loss, atol=1e-5, rtol=0)
    np.testing.assert_allclose(many.norm, one.norm, atol=2e-4, rtol=0)
    np.testing.assert_allclose(many.val_loss, one.val_loss, atol=1e-4, rtol=0)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "run", alone / "alone"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
    norms = [layer_norms(folder / "log.txt") for folder in (alone / "alone", tmp_path / "run")]
    assert norms[0].shape == norms[1].shape == (5, 5, 3)  # wte, wpe, h.0, h.1, ln_f: gradient, weight, step
    np.testing.assert_allclose(norms[1], norms[0], atol=2e-3)


def layer_norms(log):
    """Every `norms` line of a log: steps × layers × (gradient, weight, step)."""
    lines = [line.split("norms: ")[1] for line in log.read_text().splitlines() if "norms: " in line]
    return np.array([[layer.split(" ")[1:] for layer in line.split(" | ")] for line in lines], dtype=float)


@pytest.mark.parametrize("what", ["gelu", "mlp", "block"])
@pytest.mark.parametrize(("processes", "zero"), [(1, 0), (2, 3)])
def test_recomputing_changes_no_number(alone, tmp_path, what, processes, zero):
    flags = (*FIFTY, "--system.recompute", what, "--system.zero", str(zero), "--eval.sample-every", "25")
    train(alone, tmp_path / "run", *flags, processes=processes)
    one, many = (read_log(folder / "log.txt") for folder in (alone / "alone", tmp_path / "run"))
    np.testing.assert_allclose(many.loss, one.loss, atol=1e-5, rtol=0)


def test_a_run_is_the_same_to_the_last_digit_when_repeated(shards, tmp_path):
    for name in "ab":
        train(shards, tmp_path / name, processes=2)
    a, b = (read_log(tmp_path / name / "log.txt") for name in "ab")
    np.testing.assert_array_equal(a.loss, b.loss)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_run_may_be_given_in_epochs(shards, tmp_path):
    """In whole steps, as llm.c's `-x -1`: 2.5 passes over 3,525 tokens, 256 per step."""
    train(shards, tmp_path / "run", "--schedule.epochs", "2.5")
    log = read_log(tmp_path / "run" / "log.txt")
    assert len(log.step) == int(2.5 * (3524 // 16)) * 16 // 256 == 34 and log.batch_tokens == 256
    assert log.lr[-1] < 0.2 * log.lr.max()  # the schedule ends with the run
    assert "complete" in train(shards, tmp_path / "run", "--schedule.epochs", "2.5").stdout
    for flags, problem in {
        ("--schedule.epochs", "0"): r"--schedule.epochs 0.* is out of range; give more than 0",
        ("--schedule.epochs", "inf"): r"--schedule.epochs inf is out of range",
        ("--schedule.epochs", "2", "--languini.hours", "1"): r"epochs 2 and --languini.hours 1 both .*give one",
    }.items():
        assert re.search(problem, train(shards, tmp_path / "b", *flags, check=False).stderr)


@pytest.mark.parametrize(("compiled", "processes"), [("off", 2), ("on", 1)])
def test_weights_that_are_cast_in_use_follow_fp32(shards, tmp_path, compiled, processes):
    train(shards, tmp_path / "fp32", preset="speedrun-demo")
    flags = ("--system.weights", "bf16-cast", "--system.compile", compiled, "--system.precision", "auto")
    train(shards, tmp_path / "cast", *flags, preset="speedrun-demo", processes=processes)
    a, b = (read_log(tmp_path / name / "log.txt") for name in ("fp32", "cast"))
    np.testing.assert_allclose(b.loss, a.loss, atol=0.06, rtol=0)
    dtypes = {name: t.dtype for name, t in load_file(tmp_path / "cast" / "model" / "model.safetensors").items()}
    assert dtypes.pop("transformer.wte.weight") == torch.bfloat16 and set(dtypes.values()) == {torch.float32}
    assert "execution: bf16" in (tmp_path / "cast" / "log.txt").read_text()


@pytest.mark.parametrize("preset", ["speedrun-demo", "gpt-oss-demo", "demo"])
def test_autocast_is_off_in_a_model_whose_weights_are_cast_in_use(preset, monkeypatch):
    """In training, evaluation and sampling: on a GPU it would make norms and the residual stream fp32."""
    run = PRESETS[preset][1]
    model = build(make_config(run.model, run.parts)).bfloat16()
    cast_in_use(model)
    seen, linear = [], torch.nn.functional.linear

    def watch(x, *others):
        seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return linear(x, *others)

    monkeypatch.setattr("torch.nn.functional.linear", watch)
    x = torch.randint(2048, (2, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x, x).backward()
        assert model.logits(model.hidden(x)).dtype == torch.bfloat16
    router = {torch.float32} if run.parts.experts else set()  # whose logits are never rounded
    assert {dtype for dtype, _ in seen} == {torch.bfloat16} | router
    assert not any(enabled for _, enabled in seen) and len(seen) > 2 * run.model.n_layer


def test_products_in_fp8_follow_fp32(shards, tmp_path):
    """Rounded as on a GPU, multiplied in fp32: the losses are near, and differ; weights and samples are ordinary."""
    pytest.importorskip("torchao", reason="there is no torchao; pip install -e '.[fp8]'")
    train(shards, tmp_path / "fp32")
    train(shards, tmp_path / "fp8", "--system.fp8", "--eval.sample-every", "10", processes=2)
    a, b = (read_log(tmp_path / name / "log.txt") for name in ("fp32", "fp8"))
    np.testing.assert_allclose(b.loss, a.loss, atol=0.06, rtol=0)
    assert np.abs(b.loss - a.loss).max() > 1e-4
    assert " | sample: " in (tmp_path / "fp8" / "log.txt").read_text()
    weights = load_file(tmp_path / "fp8" / "model" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert set(weights) == set(load_file(tmp_path / "fp32" / "model" / "model.safetensors"))


def test_fp8_concerns_the_blocks_alone_and_is_refused_where_nothing_can_use_it(monkeypatch):
    float8 = pytest.importorskip("torchao.float8.float8_linear", reason="there is no torchao")
    run = PRESETS["gpt-oss-demo"][1]
    model = build(make_config(run.model, dataclasses.replace(run.parts, experts=16)))  # FP8 could multiply this router
    multiply_in_fp8(model, torch.device("cpu"))
    changed = {name for name, module in model.named_modules() if isinstance(module, float8.Float8Linear)}
    assert changed and all(".attn." in name for name in changed), changed  # neither router, experts nor head
    run = PRESETS["magnitude-demo"][1]
    with pytest.raises(UserError, match="no linear map in the blocks of this model"):
        multiply_in_fp8(build(make_config(run.model, run.parts)), torch.device("cpu"))
    with pytest.raises(UserError, match="this device has no FP8 products"):
        multiply_in_fp8(model, torch.device("mps"))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"needs torchao; pip install -e '.\[fp8\]'"):
        multiply_in_fp8(model, torch.device("cpu"))


CAST = ("--system.weights", "bf16-cast")
REFUSED = {
    "fp8": (("--system.fp8", "--system.weights", "bf16"), r"--system.fp8 needs weights in fp32"),
    "zero": (("--system.zero", "1", *CAST), r"give --system.zero 0"),
    "fp32": (CAST, r"--system.weights bf16-cast computes in bf16; leave --system.precision out"),
    "fp16": (("--system.weights", "bf16", "--system.precision", "fp16"), r"bf16 does not go with fp16; give --sys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_keeps_the_run_that_would_have_been_replaced(shards, tmp_path, name):
    train(shards, tmp_path / "run")
    flags, problem = REFUSED[name]
    refused = train(shards, tmp_path / "run", *flags, "--log.overwrite", check=False)
    assert refused.returncode == 2 and re.search(problem, refused.stderr)
    assert (tmp_path / "run" / "DONE").exists() and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_recomputation_that_experts_do_not_have_keeps_the_run_that_would_have_been_replaced(shards, tmp_path):
    train(shards, tmp_path / "run", preset="gpt-oss-demo")
    flags = ("--system.recompute", "gelu", "--log.overwrite")
    refused = train(shards, tmp_path / "run", *flags, preset="gpt-oss-demo", check=False)
    assert refused.returncode == 2 and "gelu does not go with experts; give mlp or block" in refused.stderr
    assert (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_follows_fp32(shards, tmp_path, precision):
    train(shards, tmp_path / "fp32")
    train(shards, tmp_path / precision, "--system.precision", precision)
    a, b = (read_log(tmp_path / name / "log.txt") for name in ("fp32", precision))
    np.testing.assert_allclose(a.loss, b.loss, atol=0.03, rtol=0)
    assert not np.array_equal(a.loss, b.loss)


@pytest.mark.parametrize(
    ("preset", "zero", "recompute"), [("demo", 0, "none"), ("gpt-oss-demo", 0, "block"), ("demo", 2, "mlp")]
)
def test_a_compiled_run_follows_the_plain_one_and_compiles_once_whatever_is_evaluated(
    shards, tmp_path, monkeypatch, preset, zero, recompute
):
    """Validation, accuracy, HellaSwag and samples bring new shapes, none of which the compiled graph may see."""
    items = [{"ctx": "a" * n, "endings": ["b" * m for m in range(1, 5)], "label": n % 4} for n in range(1, 9)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    flags = ("--eval.accuracy", "--eval.last-n", "4", "--eval.sample-every", "10", "--eval.hellaswag-every", "10")
    flags += ("--eval.hellaswag", str(tmp_path / "items.jsonl"))
    train(shards, tmp_path / "plain", *flags, preset=preset, processes=2)
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    flags += ("--system.compile", "on", "--system.zero", str(zero), "--system.recompute", recompute)
    done = train(shards, tmp_path / "compiled", *flags, preset=preset, processes=2)
    a, b = (read_log(tmp_path / name / "log.txt") for name in ("plain", "compiled"))
    np.testing.assert_allclose(a.loss, b.loss, atol=1e-4, rtol=0)
    np.testing.assert_allclose(a.val_loss, b.val_loss, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(a.hellaswag_step, [0, 10, 20])
    assert b.header["execution"].endswith(", compiled")
    assert "Recompiling" not in done.stderr, done.stderr


def test_a_run_folder_holds_log_config_and_a_model_that_transformers_opens(shards, tmp_path):
    from transformers import GPT2LMHeadModel  # here, so that the GPU tests run where it is missing

    folder = tmp_path / "run"
    train(shards, folder, "--eval.sample-every", "10", "--eval.samples", "2", "--eval.prompt", "ab")
    log = (folder / "log.txt").read_text()
    assert re.search(
        r"^step    0 \| loss: \d\.\d{6} \| lr: 7\.5000e-04 \| norm: [\d.]+ \| dt: [\d.]+ms \| tok/sec", log, re.M
    )
    assert re.search(r"^step   20 \| val loss: \d\.\d{4} \| bits/byte: \d\.\d{4}$", log, re.M)
    assert len(re.findall(r"^step   (?:10|20) \| sample: \"ab", log, re.M)) == 4
    assert "# command: train_gpt2.py demo" in log and "# hardware: 1 process" in log
    run = from_json((folder / "config.json").read_text())
    assert (run.model.n_layer, run.data.shards, run.schedule.steps) == (2, str(shards), 20)
    assert GPT2LMHeadModel.from_pretrained(folder / "model").config.n_embd == 32
    assert not list(folder.rglob("*.tmp"))


def test_bits_per_byte_is_the_loss_in_bits_over_bytes_of_text(shards, tmp_path):
    """The vocabulary is bytes, so they differ by end-of-text alone, which is no byte of text."""
    train(shards, tmp_path / "run", "--eval.tokens", "1488")
    log = read_log(tmp_path / "run" / "log.txt")
    scored = np.load(shards / "val_000000.npy")[1 : 1488 + 1]
    expected = log.val_loss / np.log(2) * 1488 / (scored < 256).sum()
    np.testing.assert_allclose(log.bits_per_byte, expected, atol=2e-4)


def test_training_starts_from_given_weights(shards, tmp_path):
    train(shards, tmp_path / "first")
    start = ("--model.init", str(tmp_path / "first" / "model"), "--optim.lr", "0")
    train(shards, tmp_path / "second", *start)
    first, second = (read_log(tmp_path / name / "log.txt") for name in ("first", "second"))
    assert second.val_loss[0] == first.val_loss[-1]
    refused = train(shards, tmp_path / "third", *start, "--model.block-size", "32", check=False)
    assert refused.returncode == 2 and "--model.block-size 32 does not go with" in refused.stderr


def test_help_answers_at_once_and_lists_the_presets():
    for words in (["--help"], ["gpt2-124m", "--help"]):
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            done = run_python("train_gpt2.py", *words)
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 1
    done = run_python("train_gpt2.py", "--help")
    for name in PRESETS:
        assert name in done.stdout
    assert "--optim.lr" in run_python("train_gpt2.py", "gpt2-124m", "--help").stdout


@pytest.mark.alone
def test_the_first_demo_step_is_done_within_eight_seconds(tmp_path):
    """Of the interpreter's start, compilation apart; the whole process, which also saves a model, is timed here."""
    (tmp_path / "data").mkdir()
    for name in ("val_000000", "train_000001"):
        write_shard(tmp_path / "data" / f"{name}.npy", np.arange(10_000, dtype=np.uint16) % 2048)
    flags = ["--data.shards", tmp_path / "data", "--schedule.steps", "1", "--schedule.warmup", "0", "--eval.every", "0"]
    seconds = []
    for i in range(2):
        started = time.perf_counter()
        folder = tmp_path / str(i)
        run_python("train_gpt2.py", "demo", *flags, "--system.compile", "off", "--log.folder", folder, processes=2)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 8 * 1.5, seconds  # the whole torchrun, on a machine that may be busy


def test_a_closed_pipe_is_no_mistake(shards, tmp_path):
    """`train_gpt2.py … | head -1`: the run goes on quietly to its end."""
    words = shlex.join(map(str, command(*train_words(shards, tmp_path / "run"))["args"]))
    pipe = ["bash", "-c", f"{words} | head -1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(pipe, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert (tmp_path / "run" / "DONE").exists()


def test_an_unknown_command_is_refused_with_those_that_exist(capsys):
    with pytest.raises(UserError, match="unknown command 'trian'; give one of generate, evaluate"):
        gpt2_command.main(["trian"])
    gpt2_command.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(gpt2_command.COMMANDS)


def test_presets_survive_json():
    for _, run in PRESETS.values():
        assert from_json(to_json(run)) == run


def test_the_default_preset_is_the_lecture_run():
    _, run = next(iter(PRESETS.values()))
    assert (run.data.batch_tokens, run.schedule.steps, run.schedule.warmup) == (2**19, 19073, 715)
    assert (run.optim.lr, run.optim.betas, run.optim.eps, run.optim.weight_decay) == (6e-4, (0.9, 0.95), 1e-8, 0.1)
    assert (run.schedule.kind, run.schedule.final_fraction, run.optim.clip) == ("cosine", 0.1, 1.0)
    assert (run.eval.every, run.eval.tokens, run.model.init) == (250, 20 * 2**19, "d12")


def wrong(shards, tmp_path, *flags: str) -> str:
    """The one line that a mistaken command prints; it ends with status 2 and leaves no run behind."""
    done = train(shards, tmp_path / "run", *flags, check=False)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert not (tmp_path / "run" / "log.txt").exists()
    return lines[0]


def test_validation_on_training_text_is_refused(shards, tmp_path):
    assert "no val shards in" in wrong(shards, tmp_path, "--data.shards", f"{shards}/train*.npy")
    one = shutil.copy(shards / "train_000001.npy", tmp_path / "text.npy")
    same = wrong(shards, tmp_path, "--data.shards", str(one))
    assert f"{one} is both a train and a val shard; name other val shards: --data.val-shards" in same


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--data.shards", "nowhere"), "no train shards in 'nowhere'; make some with: python fineweb.py"),
        (("--model.vocab-size", "300"), "made with a vocabulary of 257, the model's is 300"),
        (
            ("--data.batch-tokens", "250", "--system.micro-batch", "4"),
            "the nearest that does is --data.batch-tokens 256",
        ),
        (("--data.batch-tokens", "8192"), "fewer than one batch of 8,192"),
        (("--model.block-size", "2000", "--data.batch-tokens", "2000"), "val shards hold 1500 tokens"),
        (("--log.folder", "/proc/run"), "can't write to /proc/run"),
        (("--model.init", "d13"), "unknown model 'd13'; known: d6, d12"),
        (("--model.n-head", "3"), "n_embd 32 is not divisible by n_head 3"),
        (("--system.device", "cuda"), "--system.device cuda is not available on this machine; available: cpu"),
        (("--optim.clip", "-1"), "--optim.clip -1.0 is out of range; give 0 or more"),
        (("--schedule.warmup", "-1"), "--schedule.warmup -1 is out of range; give 0 or more"),
        (("--optim.skip-norm-z", "12"), "--optim.skip-norm-z 12 would never act"),
        (("--schedule.steps", "0"), "--schedule.steps 0 is out of range; give 1 or more"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_that_says_how_to_mend_it(shards, tmp_path, flags, says):
    if flags[0] == "--system.device" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    write_index(shards / "index.json", {"vocab_size": 257, "shards": []})
    assert says in wrong(shards, tmp_path, *flags)


def test_tokens_beyond_the_vocabulary_are_refused_without_an_index(shards, tmp_path):
    write_shard(shards / "train_000002.npy", np.full(100, 400, dtype=np.uint16))
    assert "holds token 400, but the model's vocabulary has 257" in wrong(shards, tmp_path)


def test_a_damaged_shard_is_named(shards, tmp_path):
    path = shards / "train_000002.npy"
    path.write_bytes(path.read_bytes()[:-100])
    assert "its header promises 911 tokens and the file holds 861" in wrong(shards, tmp_path)


def test_a_run_is_never_replaced_unasked(shards, tmp_path):
    train(shards, tmp_path / "run")
    before = (tmp_path / "run" / "log.txt").read_text()
    for flags, says in ((("--optim.lr", "1"), "optim.lr 0.003 → 1.0"), (("--resume", "never"), "holds a run already")):
        again = train(shards, tmp_path / "run", *flags, check=False)
        assert again.returncode == 2 and says in again.stderr
        assert (tmp_path / "run" / "log.txt").read_text() == before
    train(shards, tmp_path / "run", "--log.overwrite", "--schedule.steps", "2")
    assert len(read_log(tmp_path / "run" / "log.txt").loss) == 2


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(["dmo"], "demo"), (["demo", "--optim.lrr", "1"], "--optim.lr"), (["--sytem.seed", "1"], "--system.seed")],
)
def test_an_unknown_preset_or_flag_names_the_nearest(words, nearest):
    done = run_python("train_gpt2.py", *words, check=False)
    assert done.returncode == 2 and nearest in done.stdout + done.stderr


def test_the_committed_log_is_of_a_real_run():
    log = read_log(ROOT / "log.txt")
    assert len(log.step) >= 200 and np.array_equal(log.step, np.arange(len(log.step)))
    assert {"command", "hardware"} <= set(log.header) and log.val_loss[-1] < log.val_loss[0] - 2


def test_micro_batch_auto_finds_one_that_divides(shards, tmp_path):
    train(shards, tmp_path / "run", "--system.micro-batch", "auto", "--schedule.steps", "1", processes=2)
    assert " of 8 × " in read_log(tmp_path / "run" / "log.txt").header["accumulation"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["system"]["micro_batch"] == "auto"


def test_two_processes_say_a_mistake_once(shards, tmp_path):
    """torchrun adds its own report and turns exit status 2 into 1."""
    done = train(shards, tmp_path / "run", "--schedule.steps", "0", processes=2, check=False)
    assert done.returncode and done.stderr.count("error: --schedule.steps 0 is out of range") == 1


def test_a_micro_batch_that_fails_leaves_no_gradient_behind(monkeypatch):
    """The search for the largest micro-batch must not train: running out of memory in backward is part of it."""
    run = dataclasses.replace(PRESETS["demo"][1], system=System(micro_batch="auto"))
    one = Processes(0, 0, 1, torch.device("cpu"))
    model = build(make_config(run.model, run.parts))

    def attempt_all(attempt, sequences, sequence_bytes, processes):
        handle = model.transformer.h[0].mlp.c_fc.weight.register_hook(out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            attempt(2)
        handle.remove()
        assert all(p.grad is None for p in model.parameters())
        return sequences

    def out_of_memory(_):
        assert any(p.grad is not None for p in model.parameters())
        raise torch.OutOfMemoryError("as CUDA says it")

    monkeypatch.setattr(gpt2.training.execution, "choose_micro_batch", attempt_all)
    assert gpt2.training.execution.choose_execution(run, model, one).micro_batch == 16


GPU_RUNS = {
    "fp32": ["--system.precision", "fp32"],
    "tf32, auto": ["--system.precision", "tf32", "--system.micro-batch", "auto"],
    "bf16": ["--system.precision", "bf16"],
    "fp16": ["--system.precision", "fp16"],
    "auto, compiled": ["--system.precision", "auto", "--system.compile", "on", "--eval.sample-every", "10"],
}


@pytest.mark.gpu
@pytest.mark.parametrize("flags", ["--system.compile on", "--system.weights bf16-master", "--system.small-gpu"])
@pytest.mark.parametrize("preset", ["speedrun-demo", "gpt-oss-demo", "magnitude-demo"])
def test_other_parts_on_a_gpu_follow_the_cpu(shards, tmp_path, preset, flags):
    if preset == "magnitude-demo" and "master" in flags:
        pytest.skip("refused: masters would keep the magnitudes that weights lose")
    train(shards, tmp_path / "cpu", preset=preset)
    flags = ["--system.device", "cuda", "--system.precision", "auto", *flags.split()]
    train(shards, tmp_path / "cuda", *flags, preset=preset)
    cpu, cuda = (read_log(tmp_path / folder / "log.txt") for folder in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.loss, cpu.loss, atol=6e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_RUNS)
def test_a_gpu_run_follows_the_cpu_one(shards, tmp_path, name):
    train(shards, tmp_path / "cpu")
    train(shards, tmp_path / "cuda", "--system.device", "cuda", *GPU_RUNS[name])
    cpu, cuda = (read_log(tmp_path / folder / "log.txt") for folder in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.loss, cpu.loss, atol=1e-4 if name == "fp32" else 3e-2, rtol=0)
