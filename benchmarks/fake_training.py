"""A training run on one GPU that is not there: its tensors have shapes and no data (`fake_cuda.py`)."""

from types import SimpleNamespace
from typing import Any

import torch
from fake_cuda import patched
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.config.run import Run
from gpt2.evaluation.validation import ending_losses, evaluating
from gpt2.generate import generate
from gpt2.optim.optimizer import make_optimizer
from gpt2.system.devices import autocast
from gpt2.system.processes import Processes
from gpt2.training.distributed import clip_gradients
from gpt2.training.evaluation import Evaluation
from gpt2.training.execution import Execution

CUDA = torch.device("cuda")


def forward_backward(trained: Any, tokens: Tensor, precision: str) -> None:
    """One micro-step through the compiled model."""
    with autocast(CUDA, precision):
        result = trained(tokens, tokens)
    loss = result[1] if isinstance(result, tuple) else result
    loss.backward()


class FakeTraining:
    """The parts of a training run, on one GPU, whose tensors have no data."""

    def __init__(self, run: Run, model: Any, trained: nn.Module, tokens: Tensor, precision: str):
        self.run, self.model, self.tokens, self.precision = run, model, tokens, precision
        weights, normalised = run.system.weights, run.parts.normalised_weights
        self.optimizer = make_optimizer(model, run.optim, weights=weights, normalised_weights=normalised)
        # what `Evaluation.loss` reads of an Evaluation
        self.evaluation: Any = SimpleNamespace(
            processes=Processes(0, 0, 1, CUDA),
            execution=Execution(precision, True, len(tokens)),
            state=SimpleNamespace(model=model, trained=trained),
        )

    def update(self) -> int:
        """Clip the gradients and let the optimiser make its update, twice; return the launches of the second time.

        The first update creates the optimiser's state.
        """
        # PyTorch calls its foreach functions for plain tensors only, and takes fake ones for a subclass
        with patched((clip_grad, "_has_foreach_support", lambda tensors, device: True)):
            for _ in range(2):
                with LaunchCounter() as counter:
                    clip_gradients(self.model, self.run.optim.clip)
                    self.optimizer.step()
        return counter.launches

    def evaluate(self) -> None:
        """What `Evaluation` does between two steps: validation loss, HellaSwag, samples."""
        Evaluation.loss(self.evaluation, self.model, self.tokens, self.tokens)
        ending = 4
        lengths = sorted({min(length, self.model.config.block_size) for length in (32, 64, 96)})
        contexts = [self.tokens[0, : length + 1 - ending] for length in lengths]
        with evaluating(self.model, CUDA, self.precision), FixedMasks(ending):
            ending_losses(self.model, contexts, [self.tokens[0, :ending]] * len(lengths))
        for _ in generate(self.model, self.tokens[:4, :8], 3, top_k=50):
            pass


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that run on the GPU: neither views nor empty tensors. A call for many tensors is one."""

    launches = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = operation.is_view or "empty" in operation.name() or operation is torch.ops.aten._unsafe_view.default
        self.launches += operation.namespace == "aten" and not view
        return operation(*args, **(kwargs or {}))


class FixedMasks(TorchDispatchMode):
    """A mask without data does not tell how many elements it selects. Here every mask selects `selected`."""

    def __init__(self, selected: int):
        super().__init__()
        self.selected = selected

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            x, (mask,) = args
            return x.new_empty(self.selected, *x.shape[mask.dim() :])
        return operation(*args, **(kwargs or {}))
