"""The bugs that users of other trainers met are put into a copy of this one; each time, the named test must fail.

A test that passes whatever the code does is worth nothing, and only breaking the code shows which kind it is.
"""

import re
import shutil
from dataclasses import dataclass

import pytest
from conftest import ROOT, Run


@dataclass(frozen=True)
class Bug:
    """A bug: what it was called where it happened, the line it changes, and the test that must notice."""

    name: str
    file: str
    right: str
    wrong: str
    test: str


ENDINGS = "tests/test_hellaswag.py::test_every_ending_is_scored_as_transformers_scores_it_alone"

BUGS = [
    Bug(
        "gradient sync switched off for backward alone (build-nanogpt 30)",
        "train_gpt2.py",
        """            with accumulating(state.trained, last=i == len(micro_batches) - 1, zero=zero):
                with autocast(device, execution.precision):
                    loss = state.trained(x, y) / len(micro_batches)""",
        """            if True:
                with autocast(device, execution.precision):
                    loss = state.trained(x, y) / len(micro_batches)
                state.trained.require_backward_grad_sync = i == len(micro_batches) - 1""",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
    ),
    Bug(
        "the end of every shard thrown away (build-nanogpt 105, 109)",
        "gpt2/data/loader.py",
        "np.cumsum([0, *(shard.tokens for shard in self.shards)])",
        "np.cumsum([0, *(shard.tokens // block_size * block_size for shard in self.shards)])",
        "tests/test_loader.py",
    ),
    Bug(
        "residual projections made larger with depth, not smaller",
        "gpt2/model.py",
        "0.02 / math.sqrt(2 * self.config.n_layer)",
        "0.02 * math.sqrt(2 * self.config.n_layer)",
        "tests/test_model.py",
    ),
    Bug(
        "the loss of the last micro-batch logged for that of the batch",
        "train_gpt2.py",
        "            total += loss.detach()",
        "            total = loss.detach() * len(micro_batches)",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
    ),
    Bug(
        "accumulated without dividing",
        "train_gpt2.py",
        "loss = state.trained(x, y) / len(micro_batches)",
        "loss = state.trained(x, y)",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
    ),
    Bug(
        "HellaSwag's labels shifted by one",
        "gpt2/evaluation/hellaswag.py",
        "targets.append(tokens[counts])",
        "targets.append(tokens.roll(-1, dims=1)[counts])",
        ENDINGS,
    ),
    Bug(
        "HellaSwag's mask shifted by one",
        "gpt2/evaluation/hellaswag.py",
        "counts = torch.arange(L, device=device) < lengths[:, None]",
        "counts = torch.arange(1, L + 1, device=device) < lengths[:, None]",
        ENDINGS,
    ),
    Bug(
        "padding scored as text",
        "gpt2/evaluation/hellaswag.py",
        "counts = torch.arange(L, device=device) < lengths[:, None]",
        "counts = torch.ones_like(tokens, dtype=torch.bool)",
        ENDINGS,
    ),
    Bug(
        "the sum of an ending's losses compared for their mean",
        "gpt2/evaluation/hellaswag.py",
        "(means.argmin(dim=1) == batch.labels)",
        "(sums.argmin(dim=1) == batch.labels)",
        "tests/test_hellaswag.py::test_acc_is_by_sum_and_acc_norm_by_mean",
    ),
    Bug(
        "position ids that begin again after the cached context",
        "gpt2/model.py",
        "positions = torch.arange(start, end, device=idx.device)",
        "positions = torch.arange(end - start, device=idx.device)",
        ENDINGS,
    ),
    Bug(
        "validation of other text every time",
        "gpt2/evaluation/validation.py",
        "rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)",
        "rows = sequences.read(np.minimum(index, count - 1) + np.random.randint(1, 9)).astype(np.int64)",
        "tests/test_evaluate.py::test_the_loss_is_the_mean_over_all_tokens_whatever_the_micro_batch",
    ),
    Bug(
        "evaluated in training mode",
        "gpt2/evaluation/validation.py",
        "    model.eval()\n",
        "    model.train()\n",
        "tests/test_evaluate.py::test_it_measures_in_evaluation_mode_and_restores_the_mode",
    ),
    Bug(
        "resumed without the optimiser's state",
        "gpt2/training/saving.py",
        'tensors[f"optimizer.{key}.{name}"] = value',
        "pass",
        "tests/test_checkpoint.py::test_what_is_saved_is_the_moment_of_saving_though_training_goes_on",
    ),
    Bug(
        "resumed at the beginning of the data",
        "gpt2/training/saving.py",
        "        self.loader.load_state_dict(record.data)\n",
        "",
        "tests/test_checkpoint.py::test_what_is_saved_is_the_moment_of_saving_though_training_goes_on",
    ),
    Bug(
        "resumed without the states of the random number generators",
        "gpt2/training/saving.py",
        "                torch.set_rng_state(random_state)",
        "                pass",
        "tests/test_checkpoint.py::test_every_process_goes_on_with_its_own_random_numbers",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_known_bug_would_be_noticed(bug, tmp_path):
    for name in ("gpt2", "tests", "train_gpt2.py", "fineweb.py", "pyproject.toml", "log.txt"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    file = tmp_path / bug.file
    text = file.read_text()
    assert text.count(bug.right) == 1, "this code has changed: name the bug's place anew"
    file.write_text(text.replace(bug.right, bug.wrong))
    words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", bug.test)
    done = Run(*words, root=tmp_path, preloaded=("torch", "torch._dynamo", "transformers", "matplotlib.pyplot")).wait()
    assert done.returncode == 1, done.stdout[-2000:]  # 1: tests were run, and at least one failed …
    assert not re.search("SyntaxError|NameError|TypeError|ImportError", done.stdout), done.stdout  # … for the bug
