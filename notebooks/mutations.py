"""Break one line of a module that a notebook teaches, and check that the notebook fails. Takes minutes.

    python notebooks/mutations.py            all
    python notebooks/mutations.py 02 05      those of these two notebooks

The lines are broken in a copy of the repository. The exit status is 1 if a notebook did not fail.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from contents import FOLDER

ROOT = FOLDER.parent
COPIED = ("notebooks", "gpt2", "benchmarks", "scripts", "fineweb.py", "train_gpt2.py", "log.txt", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A piece of code that occurs once in a file, and the wrong code to replace it with."""

    notebook: str
    file: str
    right: str
    wrong: str


MUTATIONS = [
    Mutation("00", "gpt2/logs/formats.py", r"loss: <loss> \| lr: <lr>", r"loss: <lr> \| lr: <loss>"),
    Mutation("01", "gpt2/data/tokenizer.py", "if rank < vocab_size - 1}", "if rank < vocab_size - 2}"),
    Mutation(
        "01", "gpt2/data/tokenizer.py", "sizes[rank] = len(token)", 'sizes[rank] = len(token.decode(errors="replace"))'
    ),
    Mutation("02", "gpt2/kernels.py", "causal = bool(mask is None and T > 1)", "causal = False"),
    Mutation("02", "gpt2/model.py", "y.transpose(1, 2).reshape(B, T, C)", "y.reshape(B, T, C)"),
    Mutation("03", "gpt2/model.py", "self.mlp(self.ln_2(x))", "self.mlp(x)"),
    Mutation("03", "gpt2/formats/huggingface.py", '"c_attn.weight", "c_proj.weight", ', '"c_attn.weight", '),
    Mutation("04", "gpt2/generate.py", "- ordered >= top_p]", "- ordered > top_p]"),
    Mutation("04", "gpt2/model.py", "torch.arange(start, end, ", "torch.arange(0, end - start, "),
    Mutation("04", "gpt2/generate.py", "max(1, block // 2)", "max(1, block // 3)"),
    Mutation("05", "gpt2/model.py", "0.02 / math.sqrt(2 *", "0.02 * math.sqrt(2 *"),
    Mutation("05", "gpt2/kernels.py", "/ (targets != IGNORED).sum()", "/ targets.numel()"),
    Mutation("05", "gpt2/model.py", "nn.init.zeros_(p)", "nn.init.normal_(p, std=0.02)"),
    Mutation("06", "gpt2/data/loader.py", "self.first = rank * self.own", "self.first = 0"),
    Mutation("06", "gpt2/data/loader.py", "self.position += self.stride", "self.position += self.own"),
    Mutation("06", "gpt2/data/shards.py", "= 20240520, 1, 256", "= 20240521, 1, 256"),
    Mutation("07", "gpt2/planning/flops.py", "+ 12 * attention_products", "+ 6 * attention_products"),
    Mutation("07", "gpt2/kernels.py", "(q / math.sqrt(q.size(-1))) @", "(q / q.size(-1)) @"),
    Mutation("08", "gpt2/optim/schedule.py", "(step + 1) / max(1, warmup)", "step / max(1, warmup)"),
    Mutation("08", "gpt2/optim/outliers.py", "(window[-1] - mean)", "(mean - window[-1])"),
    Mutation("08", "train_gpt2.py", "state.trained(x, y) / len(micro_batches)", "state.trained(x, y)"),
    Mutation("09", "gpt2/training/distributed.py", "if last or not isinstance(", "if not last or not isinstance("),
    Mutation("09", "gpt2/training/distributed.py", "_gradient_sync(last or", "_gradient_sync(not last or"),
    Mutation("10", "gpt2/data/pipeline.py", "(END_OF_TEXT + text for", "(text + END_OF_TEXT for"),
    Mutation("10", "fineweb.py", "HELD_OUT = 20", "HELD_OUT = 10"),
    Mutation("11", "gpt2/evaluation/validation.py", "nats / math.log(2) / text_bytes", "nats / text_bytes"),
    Mutation("11", "gpt2/evaluation/hellaswag.py", ") < lengths[:, None]", ") <= lengths[:, None]"),
    Mutation("11", "gpt2/evaluation/validation.py", "int(real.sum()) * T", "micro_batch * T"),
    Mutation("12", "gpt2/data/loader.py", 'int(state["position"] or 0)', "0"),
    Mutation("12", "gpt2/training/saving.py", 'if key != "step"', 'if key == "step"'),
    Mutation("13", "gpt2/planning/memory.py", "norm = stream + 8", "norm = stream"),
    Mutation("13", "gpt2/planning/memory.py", "return 12 * config.vocab_size", "return 8 * config.vocab_size"),
    Mutation("14", "gpt2/optim/muon.py", "x = x / _norm(x @ x.mT).sqrt()", "x = x / _norm(x @ x.mT)"),
    Mutation("14", "gpt2/optim/muon.py", "* max(1, rows / columns) ** 0.5", "* max(1, columns / rows) ** 0.5"),
    Mutation("14", "gpt2/optim/muon.py", "gradient.split(matrix.fused_rows, dim=-2)", "(gradient,)"),
    Mutation("15", "gpt2/modern/attention.py", "causal & (key > query - window)", "causal & (key >= query - window)"),
    Mutation("15", "gpt2/modern/experts.py", "logits.softmax(-1).view(", "logits.sigmoid().view("),
    Mutation("15", "gpt2/formats/gpt_oss.py", "[blocks & 15, blocks >> 4]", "[blocks >> 4, blocks & 15]"),
    Mutation("16", "gpt2/modern/experts.py", "SILU_MAGNITUDE = 0.596", "SILU_MAGNITUDE = 0.569"),
    Mutation("16", "gpt2/modern/model.py", "mean_square = p.square().mean(-1", "mean_square = p.square().sum(-1"),
    Mutation("17", "gpt2/planning/flops.py", "+ 12 * attention_products", "+ 6 * attention_products"),
    Mutation("17", "gpt2/planning/step.py", "tokens * (6 * matrix_parameters", "tokens * (2 * matrix_parameters"),
    Mutation("17", "gpt2/config/checks.py", "round(hours * 3600 * speed", "int(hours * 3600 * speed"),
    Mutation("18", "train_gpt2.py", "state.trained(x, y) / len(micro_batches)", "state.trained(x, y)"),
    Mutation("18", "gpt2/model.py", "torch.arange(start, end, ", "torch.arange(0, end - start, "),
]


def error_of(notebook: str, mutation: Mutation | None = None) -> str | None:
    """The error of a notebook in a copy of the repository with this mutation; None if the notebook succeeds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for piece in COPIED:
            copy = shutil.copytree if (ROOT / piece).is_dir() else shutil.copy
            copy(ROOT / piece, folder / piece)
        if mutation:
            text = (folder / mutation.file).read_text(encoding="utf-8")
            if text.count(mutation.right) != 1:
                raise SystemExit(f"{mutation.file} has {mutation.right!r} {text.count(mutation.right)} times, not once")
            (folder / mutation.file).write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
        command = [sys.executable, "notebooks/execute.py", notebook, "--out", folder]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode == 0:
        return None
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).splitlines()  # without colours
    return next((line[:100] for line in reversed(lines) if "Error" in line), "no error message")


def main() -> None:
    """Execute the notebooks without mutations, then with each one; print the errors."""
    chosen = [mutation for mutation in MUTATIONS if not sys.argv[1:] or mutation.notebook in sys.argv[1:]]
    for notebook in sorted({mutation.notebook for mutation in chosen}):
        if error := error_of(notebook):
            raise SystemExit(f"{notebook} fails without a mutation: {error}")
    unnoticed = 0
    for mutation in chosen:
        started = time.perf_counter()
        error = error_of(mutation.notebook, mutation)
        unnoticed += error is None
        seconds = time.perf_counter() - started
        print(f"{mutation.notebook}  {mutation.file}: {mutation.wrong}  ({seconds:.0f} s)", flush=True)
        print(f"    {error or 'NOT NOTICED'}", flush=True)
    raise SystemExit(min(1, unnoticed))


if __name__ == "__main__":
    main()
