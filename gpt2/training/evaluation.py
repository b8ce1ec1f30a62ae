"""What is measured between the steps of a run: validation loss, accuracy, HellaSwag, samples.

Always on the same text, and without anything being compiled again. Built in notebook 12.
"""

import torch
from torch import Tensor

from gpt2.config.run import Run
from gpt2.data.loader import Sequences
from gpt2.data.tokenizer import get_encoding, token_bytes
from gpt2.evaluation.hellaswag import Item, prepare, score_items
from gpt2.evaluation.validation import HeldOut, measure, validate
from gpt2.generate import generate
from gpt2.logs.writer import RunLog
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.devices import autocast
from gpt2.system.processes import Processes
from gpt2.training.distributed import accumulating, full_model
from gpt2.training.execution import Execution
from gpt2.training.saving import TrainingState


class Evaluation:
    """Measures what is due at a step.

    The loss of whole weights goes through the graph that training compiled, everything else through the plain model.
    Where weights are divided, every process gathers a full copy for the time of the evaluation, and works on its own.
    """

    def __init__(
        self,
        run: Run,
        state: TrainingState,
        val: Sequences,
        items: list[Item],
        execution: Execution,
        processes: Processes,
    ):
        self.run, self.state, self.val, self.execution, self.processes = run, state, val, execution, processes
        self.encoding = get_encoding(run.model.vocab_size)
        self.sizes = token_bytes(self.encoding)
        self.batches = prepare(items, self.encoding.n_vocab, state.model.config.block_size) if items else []

    def __call__(self, step: int, log: RunLog) -> None:
        """Measure what is due at this step, or at the end of the run, and log it. All processes call this together."""
        wanted, last, precision = self.run.eval, step == self.run.schedule.steps, self.execution.precision
        validation = is_due(step, wanted.every, last)
        hellaswag = is_due(step, wanted.hellaswag_every, last)
        sampling = is_due(step, wanted.sample_every, last) and step > 0
        if not (validation or hellaswag or sampling):
            return
        model = full_model(self.state.model)
        if validation:
            text, micro_batch = HeldOut(self.val, wanted.tokens, self.sizes), self.execution.micro_batch
            log.validation(step, *validate(lambda x, y: self.loss(model, x, y), text, micro_batch, self.processes))
            if wanted.accuracy or wanted.last_n:
                log.measured(step, measure(model, text, micro_batch, self.processes, precision, wanted.last_n))
        if hellaswag:
            result = score_items(model, self.batches, self.processes, precision)
            log.hellaswag(step, result.correct_norm, result.total)
        if sampling and self.processes.is_first:
            log.samples(step, self.samples(model))

    def loss(self, model: GPT | Modern, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of one micro-batch."""
        autocasting = autocast(self.processes.device, self.execution.precision)
        if model is not self.state.model:
            with torch.no_grad(), autocasting:
                return model(x, y)
        trained = self.state.trained
        gradients = torch.set_grad_enabled(self.execution.compiled)  # as in training: otherwise it is another graph
        with gradients, autocasting, accumulating(trained, last=False):
            return trained(x, y).detach()

    def samples(self, model: GPT | Modern) -> list[str]:
        """Texts after the prompt, with the same random numbers at every step; top-k 50, as in the lecture."""
        wanted, device = self.run.eval, self.processes.device
        prompt = self.encoding.encode_ordinary(wanted.prompt) or [self.encoding.eot_token]
        idx = torch.tensor([prompt] * wanted.samples, device=device)
        generator = torch.Generator(device).manual_seed(self.run.system.seed)
        new = max(1, wanted.sample_tokens - len(prompt))
        columns = [idx, *generate(model, idx, new, top_k=50, generator=generator)]
        return [self.encoding.decode(row) for row in torch.cat(columns, dim=1).tolist()]


def is_due(step: int, every: int, last: bool = False) -> bool:
    """Whether something that happens every so many steps, and after the last, happens now; 0 is never."""
    return every > 0 and (step % every == 0 or last)
