"""Sampling: the cache changes the speed alone, and each knob does what its paper says."""

import pytest
import torch
from conftest import run_python

from gpt2.generate import choose, generate
from gpt2.model import GPT, GPTConfig


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def written(model, idx, tokens, **knobs):
    return torch.cat(list(generate(model, idx, tokens, **knobs)), dim=1)


def test_cached_sampling_equals_uncached(model):
    idx = torch.randint(257, (3, 5))
    cached = written(model, idx, 27, generator=torch.Generator().manual_seed(1))
    context, generator = idx, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(27):
            context = torch.cat([context, choose(model(context)[0][:, -1], generator=generator)], dim=1)
    assert torch.equal(cached, context[:, 5:])


def test_greedy_is_what_transformers_generates(model, tmp_path):
    from transformers import GPT2LMHeadModel

    model.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = torch.randint(256, (1, 4))
    expected = theirs.generate(idx, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(written(model, idx, 20, temperature=0), expected[:, 4:])


def test_writing_goes_on_past_the_block(model):
    tokens = written(model, torch.randint(257, (2, 30)), 80)
    assert tokens.shape == (2, 80)
    long_prompt = written(model, torch.randint(257, (1, 100)), 3)
    assert long_prompt.shape == (1, 3)


def test_past_the_block_the_later_half_is_the_context(model):
    idx = torch.randint(257, (1, 32))
    tokens = written(model, idx, 2, temperature=0)
    context = torch.cat([idx, tokens[:, :1]], dim=1)[:, -16:]
    with torch.no_grad():
        assert tokens[0, 1] == model(context)[0][0, -1].argmax()


LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]]))


def frequencies(**knobs) -> torch.Tensor:
    drawn = choose(LOGITS.expand(20_000, -1), generator=torch.Generator().manual_seed(0), **knobs)
    return torch.bincount(drawn.flatten(), minlength=5) / 20_000


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, [0.7385, 0.1846, 0.0665, 0.0145, 0.0027]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"top_p": 0.5}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [2 / 3, 1 / 3, 0, 0, 0]),
    ],
)
def test_each_knob_gives_its_distribution(knobs, expected):
    torch.testing.assert_close(frequencies(**knobs), torch.tensor(expected), atol=0.012, rtol=0, check_dtype=False)


def test_the_command_continues_a_prompt_the_same_way_for_a_seed(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    words = ("-m", "gpt2.generate", tmp_path, "--prompt", "abc", "--tokens", "12", "--samples", "2")
    first, second = run_python(*words).stdout, run_python(*words).stdout
    assert first == second and first.startswith("abc") and first.count("abc") == 2
    assert run_python(*words, "--seed", "1").stdout != first
    assert run_python(*words[:3], "--prompt", "", "--tokens", "3").returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--temperature", "-1"], "--temperature -1.0 is out of range"),
        (["--top-p", "1.5"], "--top-p 1.5 is out of range"),
        (["--top-k", "0"], "--top-k 0 is out of range"),
    ],
)
def test_impossible_knobs_are_refused(words, says):
    done = run_python("-m", "gpt2.generate", "nowhere", *words, check=False)
    assert done.returncode == 2 and says in done.stderr


def test_a_folder_without_a_model_is_refused(tmp_path):
    done = run_python("-m", "gpt2.generate", tmp_path, check=False)
    assert done.returncode == 2 and "holds no model" in done.stderr
