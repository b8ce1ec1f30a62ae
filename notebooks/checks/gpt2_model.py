"""Checkers of notebook 03, and a folder of weights as the library `transformers` opens it."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checks import exercise, expect, expect_equal
from gpt2.model import GPT, GPTConfig


def open_in_transformers(folder: Path) -> tuple[Any, Any] | None:
    """The model and the tokenizer that the library `transformers` finds in a folder; None where it is not installed."""
    if find_spec("transformers") is None:
        print("transformers is not installed, so this is skipped; pip install transformers adds it")
        return None
    warnings.filterwarnings("ignore", message="IProgress not found")  # about a missing progress bar
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def _shaken(config: GPTConfig) -> GPT:
    """A model in which no parameter is 0 or 1."""
    torch.manual_seed(0)
    model = GPT(config).requires_grad_(False)
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return model


@exercise
def block(solution) -> None:
    """The residual stream after one block of GPT-2."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    attention, mlp = nn.Linear(8, 8), nn.Linear(8, 8)
    ln_1, ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
    for norm in (ln_1, ln_2):
        nn.init.normal_(norm.weight)
    with torch.no_grad():
        found = solution(x.clone(), ln_1, attention, ln_2, mlp)
        middle = x + attention(ln_1(x))

        def same(other: Tensor) -> bool:
            return isinstance(found, Tensor) and found.shape == other.shape and torch.allclose(found, other, atol=1e-5)

        expect(
            not same(mlp(ln_2(attention(ln_1(x))))),
            "nothing is added: both residual connections are missing, so the input is lost",
        )
        expect(
            not same(mlp(ln_2(middle))),
            "the second residual connection is missing: add the MLP's result to the stream as well",
        )
        expect(
            not same(x + mlp(ln_2(middle))),
            "the MLP's result is added to the block's input; what attention added is lost. Add it to the new stream",
        )
        expect(
            not same(middle + mlp(ln_2(x))),
            "the MLP reads the block's input; it should read the stream that attention has added to",
        )
        expect(
            not same((x + attention(x)) + mlp(x + attention(x))),
            "no LayerNorm is used: each part reads a normalised copy of the stream",
        )
        expect(not same(middle + mlp(middle)), "the MLP reads the stream as it is; it should read ln_2 of it")
        normed = ln_1(x) + attention(ln_1(x))
        expect(
            not same(normed + mlp(ln_2(normed))),
            "the norm has replaced the stream: only the copy that attention reads is normalised, and x stays as it is",
        )
        post = ln_1(x + attention(x))
        expect(
            not same(ln_2(post + mlp(post))),
            "this norms the sums (post-norm), as GPT-1 did; GPT-2 norms what each part reads",
        )
        expect_equal(found, middle + mlp(ln_2(middle)), "the stream after the block")


@exercise
def logits_of(solution) -> None:
    """Logits of the last normalised stream."""
    torch.manual_seed(0)
    x, wte = torch.randn(2, 3, 8), torch.randn(12, 8)
    found = solution(x, wte, 10)
    expect(isinstance(found, Tensor), "the result should be a tensor; is there a `return`?")
    full = x @ wte.T
    expect(
        found.shape != full.shape,
        "there are 12 logits per position: the last 2 belong to padding rows, which are no tokens; cut them off",
    )
    expect(
        found.shape == (2, 3, 10),
        f"the logits have the shape {tuple(found.shape)}; (B, T, V) is (2, 3, 10): one per position and token",
    )
    expect(
        not torch.allclose(found, full[..., :10].softmax(-1)),
        "these are probabilities; the logits are the dot products, before the softmax",
    )
    expect(
        not torch.allclose(found, full[..., 2:]),
        "the first rows were cut off; the padding rows are the last ones",
    )
    expect_equal(found, full[..., :10], "the tensor of logits")


@exercise
def block_parameters(solution) -> None:
    """Parameters of one block."""
    C = 768
    found = solution(C)
    right = 12 * C * C + 13 * C
    case = f"for C = {C}, {found:,}" if isinstance(found, int | float) else f"for C = {C}, {found!r}"
    expect(found is not None, "the result is None; is there a `return`?")
    expect(found != 12 * C * C, f"{case}: these are the weights of the matrices; biases and norms are missing")
    expect(found != right - 4 * C, f"{case}: the two LayerNorms are missing; each has a weight and a bias")
    expect(found != right - 2 * C, f"{case}: a block has two LayerNorms, and each has a weight and a bias")
    expect(found != right - 9 * C, f"{case}: the four linear layers have biases: 3 C, C, 4 C and C")
    expect(found != right - 2 * C * C - 2 * C, f"{case}: c_attn makes q, k and v, so it has 3 C outputs")
    expect(found != right - 4 * C * C - C, f"{case}: the MLP has two matrices, up to 4 C and back")
    expect(found != right * 12, f"{case}: these are all 12 blocks; give one")
    expect_equal(found, right, f"the number for C = {C}")


@exercise
def post_norm_block(solution) -> None:
    """Norms of the sums, in the order of the first Transformer."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    attention, mlp = nn.Linear(8, 8), nn.Linear(8, 8)
    ln_1, ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
    for norm in (ln_1, ln_2):
        nn.init.normal_(norm.weight)
    with torch.no_grad():
        found = solution(x.clone(), attention, ln_1, mlp, ln_2)
        middle = ln_1(x + attention(x))
        wanted = ln_2(middle + mlp(middle))

        def same(other: Tensor) -> bool:
            return isinstance(found, Tensor) and found.shape == other.shape and torch.allclose(found, other, atol=1e-4)

        pre = x + attention(ln_1(x))
        expect(
            not same(pre + mlp(ln_2(pre))), "this is GPT-2's own order: each part reads a norm. Norm the sums instead"
        )
        expect(
            not same(ln_2(mlp(ln_1(attention(x))))), "nothing is added: a part's result has to be added to the stream"
        )
        inside = x + ln_1(attention(x))
        expect(not same(inside + ln_2(mlp(inside))), "the norm is of the part's result alone; it should be of the sum")
        expect(not same(ln_1(middle + mlp(middle))), "the second sum goes through ln_1 again; it has a norm of its own")
        expect(
            not same(ln_2(middle + mlp(x))),
            "the MLP reads the block's input; it should read what the first norm returns",
        )
        expect(
            not same(ln_2(x + mlp(middle))), "the MLP's result is added to the block's input; the first half is lost"
        )
        expect(not same(middle + mlp(middle)), "the second sum is returned without its norm")
        expect_equal(found, wanted, "the stream after the block")


@exercise
def sizes_of(solution) -> None:
    """Sizes read off the tensors of a file."""
    config = GPTConfig(block_size=24, vocab_size=300, n_layer=12, n_head=2, n_embd=8)
    state = GPT(config).state_dict()
    tensors = {name: t.t() if name.endswith(("c_attn.weight", "c_proj.weight")) else t for name, t in state.items()}
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:300]
    found = solution(tensors)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(isinstance(found, dict), f"the result is a {type(found).__name__}; it should be a dict of four sizes")
    wanted = {name: value for name, value in vars(config).items() if name != "n_head"}
    missing = [name for name in wanted if name not in found]
    expect(not missing, f"these sizes are missing: {', '.join(missing)}")
    more = [name for name in found if name not in wanted]
    expect(not more, f"{', '.join(map(str, more))} can't be known from the shapes; leave it out")
    layers = found["n_layer"]
    expect(layers != 11, "n_layer is 11: that is the number of the last block, and the first one is number 0")
    expect(
        layers != 10, "n_layer is 10: as text, '9' comes after '11'; make numbers of them before you take the largest"
    )
    expect(layers != 144, "n_layer is 144: that is the number of tensors in the blocks; each block has 12 of them")
    expect(found["n_embd"] != 24, "n_embd is 24, three times too many: c_attn makes q, k and v of it")
    swapped = found["block_size"] == 8 or found["vocab_size"] == 8
    expect(not swapped, "a table has a row for each token or position, and n_embd columns; you took the columns")
    for name, value in wanted.items():
        expect_equal(found[name], value, name)


@exercise
def to_published(solution) -> None:
    """A state dict as the published files hold it."""
    model = _shaken(GPTConfig(block_size=24, vocab_size=300, n_layer=2, n_head=2, n_embd=8))
    state = model.state_dict()
    found = solution(dict(state), 300)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(isinstance(found, dict), f"the result is a {type(found).__name__}; it should be a dict of tensors by name")
    missing = [name for name in state if name not in found]
    expect(not missing, f"{len(missing)} tensors are missing, the first is {missing[0] if missing else ''}")
    more = [name for name in found if name not in state]
    expect(not more, f"there is a tensor {more[0] if more else ''} that the file should not have")
    for name, tensor in state.items():
        other, table = found[name], name.endswith(("wte.weight", "wpe.weight"))
        expect(isinstance(other, Tensor), f"{name} is a {type(other).__name__}; it should be a tensor")
        matrix = tensor.dim() == 2 and not table
        wanted = tensor.t() if matrix else tensor
        if name.endswith("wte.weight"):
            rows = other.size(0)
            expect(rows != tensor.size(0), f"the token embedding has {rows} rows; the last {rows - 300} are padding")
            wanted = tensor[:300]
        if table:
            expect(
                other.shape != wanted.t().shape,
                f"{name} is transposed; a table is no linear layer and stays as it is",
            )
        if matrix and other.shape == tensor.shape and torch.equal(other, tensor):
            square = tensor.size(0) == tensor.size(1)
            why = "; it is square, so its shape fits either way, and only the numbers would be wrong" * square
            expect(False, f"{name} is not transposed{why}")
        expect_equal(other, wanted, name)
