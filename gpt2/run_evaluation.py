"""What is measured between the steps of a run.

Holds:    `Evaluation`, `samples`, `is_due`.
Built in: notebook 12.
Imports:  torch, tiktoken, gpt2.distributed, gpt2.evaluate, gpt2.fit, gpt2.generate, gpt2.hellaswag, gpt2.loader,
          gpt2.logs, gpt2.model, gpt2.modern, gpt2.run, gpt2.tokenizer.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor, nn

from gpt2.distributed import Processes, accumulating, autocast, whole_model
from gpt2.evaluate import measure, validate
from gpt2.fit import Execution
from gpt2.generate import generate
from gpt2.hellaswag import Item, prepare, score_items
from gpt2.loader import Sequences
from gpt2.logs import RunLog
from gpt2.model import GPT
from gpt2.modern import Modern
from gpt2.run import Run
from gpt2.tokenizer import token_bytes


@dataclass
class Evaluation:
    """What is measured between steps: always on the same text, and without anything being compiled again.

    The loss goes through the very graph that training compiled; everything else through the plain model. Where the
    weights are divided, every process gathers a whole copy for the time, and works on its own.
    """

    run: Run
    model: nn.Module
    raw: GPT | Modern
    make: Callable[[], GPT | Modern]
    val: Sequences
    items: list[Item]
    encoding: tiktoken.Encoding
    execution: Execution
    processes: Processes

    def __post_init__(self) -> None:
        """Encode once what is evaluated often."""
        self.sizes = token_bytes(self.encoding)
        self.batches = prepare(self.items, self.encoding.n_vocab, self.raw.config.block_size) if self.items else []

    def __call__(self, step: int, last: bool, log: RunLog) -> None:
        """Measure what is due at this step, and log it."""
        wanted = self.run.eval
        validation = is_due(step, wanted.every, last)
        hellaswag = is_due(step, wanted.hellaswag_every, last)
        sampling = is_due(step, wanted.sample_every, last) and step > 0
        if not (validation or hellaswag or sampling):
            return
        whole = whole_model(self.raw, self.make)
        if validation:
            measuring = (self.val, wanted.tokens, self.execution.micro_batch, self.processes, self.sizes)
            log.validation(step, *validate(functools.partial(self.loss, whole), *measuring))
            if wanted.accuracy or wanted.last_n:
                log.measured(step, measure(whole, *measuring, self.execution.precision, wanted.last_n))
        if hellaswag:
            result = score_items(whole, self.batches, self.processes, self.execution.precision)
            log.hellaswag(step, result.correct_norm, result.total)
        if sampling and self.processes.is_first:
            log.samples(step, samples(whole, self.run, self.encoding))

    def loss(self, whole: GPT | Modern, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of one micro-batch."""
        if whole is not self.raw:
            with torch.no_grad(), autocast(self.processes.device, self.execution.precision):
                return whole(x, y)[1]
        gradients = torch.set_grad_enabled(self.execution.compiled)  # as in training: another setting is another graph
        with gradients, autocast(self.processes.device, self.execution.precision), accumulating(self.model, last=False):
            return self.model(x, y)[1].detach()


def samples(model: GPT | Modern, run: Run, encoding: tiktoken.Encoding) -> list[str]:
    """What the model writes after the prompt: the same random numbers at every step, top-k 50 as in the lecture."""
    prompt = encoding.encode_ordinary(run.eval.prompt) or [encoding.eot_token]
    device = next(model.parameters()).device
    idx = torch.tensor([prompt] * run.eval.samples, device=device)
    generator = torch.Generator(device).manual_seed(run.system.seed)
    new = max(1, run.eval.sample_tokens - len(prompt))
    columns = [idx, *generate(model, idx, new, top_k=50, generator=generator)]
    return [encoding.decode(row) for row in torch.cat(columns, dim=1).tolist()]


def is_due(step: int, every: int, last: bool = False) -> bool:
    """Whether something that happens every so many steps, and after the last, happens now; 0 is never."""
    return every > 0 and (step % every == 0 or last)
