"""The numbers in the diagrams are those of the data that they were given, and of PyTorch and `gpt2/`."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from gpt2.model import GPT, GPTConfig

sys.path.insert(0, str(ROOT / "notebooks"))

import diagrams
from diagrams.attention import tile_steps
from diagrams.palette import number
from diagrams.parallel import ddp_times, ring_rounds, zero_bytes
from diagrams.training import FORMATS, stored
from test_diagrams import CHANCES, KEYS, MERGES, PARTS, QUERY, ROW, SCORES, VALUES, WEIGHTS, WORDS, parse, texts


def test_the_weights_of_a_query_and_their_sum_are_what_pytorch_computes():
    seen = texts(parse(diagrams.one_query(WORDS, QUERY, KEYS, KEYS)))
    keys = torch.tensor(KEYS)
    weights = (keys @ torch.tensor(QUERY) / 2).softmax(0)
    output = weights @ keys
    for value in [*weights.tolist(), *output.tolist()]:
        assert number(value) in seen
    assert "1.00" in seen
    assert abs(sum(float(number(w)) for w in weights.tolist()) - 1) < 0.03


def test_every_row_of_the_attention_matrix_is_printed_and_sums_to_one():
    root = parse(diagrams.attention_matrix(WORDS, WEIGHTS))
    rows = {}
    for text in root.iter("text"):
        if re.fullmatch(r"\d\.\d\d", text.text):
            rows.setdefault(text.get("y"), []).append(float(text.text))
    assert [len(row) for row in rows.values()] == [1, 2, 3, 4, 5]
    for t, row in enumerate(rows.values()):
        assert sum(row) == pytest.approx(1, abs=0.005 * len(row))
        assert row == pytest.approx(WEIGHTS[t][: t + 1], abs=0.006)


def test_masked_scores_give_the_weights_of_pytorch():
    seen = texts(parse(diagrams.masked_softmax(WORDS, SCORES.tolist())))
    assert seen.count("−∞") == 10 and seen.count("Σ 1.00") == 5
    for t, row in enumerate(WEIGHTS):
        assert all(number(weight) in seen for weight in row[: t + 1])


def test_tiles_end_with_the_softmax_of_the_whole_row():
    *_, total, out = tile_steps(ROW, VALUES, 3)[-1]
    expected = (torch.tensor(ROW).softmax(0) @ torch.tensor(VALUES)).item()
    assert out / total == pytest.approx(expected, abs=1e-6)
    assert any(f"= {expected:.3f}" in text for text in texts(parse(diagrams.tiled_softmax(ROW, VALUES))))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_ring_ends_with_the_total_on_every_rank(n):
    parts = np.random.default_rng(n).integers(10, size=(n, n))
    rounds = ring_rounds(parts.tolist())
    assert len(rounds) == 2 * (n - 1) + 1
    assert rounds[0][0] == parts.tolist()
    assert rounds[-1][0] == [parts.sum(0).tolist()] * n
    owned = [sum(count == n for row in counts for count in row) for _, counts in rounds]
    assert owned[n - 1] == n  # after reduce-scatter, each finished sum has one owner
    for held, counts in rounds:  # a partial sum of k ranks is one of k neighbours in the ring
        for piece in range(n):
            for rank in range(n):
                last = [(rank - i) % n for i in range(counts[rank][piece])]
                assert counts[rank][piece] == n or held[rank][piece] == parts[last, piece].sum()


def test_the_last_round_of_the_ring_is_drawn_with_the_totals():
    seen = texts(parse(diagrams.ring_all_reduce(PARTS)))
    last = seen[seen.index("round 6") + 1 :][:16]
    assert last == ["17", "20", "20", "18"] * 4


def test_formats_store_what_pytorch_stores():
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for value in (1e-5, 0.1, -3.14159, 1.0, 65504.0, 70000.0, 6e-8, 1e-8, 0.0, 255.999):
        for name, kind in kinds.items():
            bits, kept = stored(value, *FORMATS[name])
            expected = torch.tensor(value, dtype=torch.float64).to(torch.float32 if name == "fp32" else kind)
            if name != "fp32":
                expected = torch.tensor(value, dtype=torch.float32).to(kind)
            assert kept == expected.item(), (name, value)
            whole = torch.int32 if name == "fp32" else torch.int16
            pattern = expected.view(whole).item() % 2 ** len(bits)
            assert f"{pattern:0{len(bits)}b}" == bits, (name, value)
    assert len(stored(0.1, *FORMATS["TF32"])[0]) == 19


def test_adam_moves_as_pytorchs_adam():
    gradients = [2, 1.5, -0.5, 1.2]
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.95))
    seen = texts(parse(diagrams.adam_averages(gradients)))
    for gradient in gradients:
        before, weight.grad = weight.item(), torch.tensor([float(gradient)])
        optimizer.step()
        assert number(weight.item() - before, 3) in seen


def test_cross_entropy_is_that_of_the_target():
    for target, chance in CHANCES:
        assert f"= {-math.log(chance):.2f} nats" in diagrams.cross_entropy(CHANCES, target).title


def test_accumulated_gradients_end_with_the_mean():
    seen = texts(parse(diagrams.accumulation([0.2, 0.4, -0.1, 0.3])))
    assert [text for text in seen if re.fullmatch(r"0\.\d{3}", text)] == ["0.050", "0.150", "0.125", "0.200"]


def test_the_nucleus_is_the_smallest_that_reaches_p():
    chances = torch.tensor([chance for _, chance in CHANCES])
    for p in (0.3, 0.41, 0.9, 1.0):
        kept = int((chances.cumsum(0) - chances < p).sum())  # the rule of gpt2/generate.py
        assert f"Top-p {p:g} keeps {kept} here" in diagrams.sampling_rules(CHANCES, 3, p).title


def test_communication_overlaps_only_what_is_complete():
    assert ddp_times(40, [20, 20], [30, 5], overlap=True) == [60, 90]
    assert ddp_times(40, [20, 20], [30, 5], overlap=False) == [80, 110]
    assert "138 ms per step, and sending after it 192 ms" in diagrams.ddp_timeline(40, [20] * 4, [18] * 4).title


def test_each_stage_of_zero_divides_one_more_part():
    P, n = 1000, 8
    assert [zero_bytes(P, n, stage) for stage in range(4)] == [16 * P, 9 * P, 5.5 * P, 2 * P]


def test_the_loader_deals_every_sequence_once_and_targets_come_one_later():
    seen = texts(parse(diagrams.loader_line([str(i) for i in range(33)])))
    dealt = seen[seen.index("rank 0") :]
    numbers = [int(text) for text in dealt if text.isdecimal()]
    rows = [numbers[i : i + 8] for i in range(0, len(numbers), 8)]
    assert [token for row in rows for token in row[:4]] == list(range(32))
    assert all([a + 1 for a in row[:4]] == row[4:] for row in rows)


def test_merges_are_counted():
    diagram = diagrams.bpe_merges(MERGES)
    assert diagram.title == "2 merges turn 5 tokens into 2."
    assert "at␣at" in texts(parse(diagram))


def test_parameters_are_those_of_gpt2():
    model = GPT(GPTConfig(block_size=16, vocab_size=128, n_layer=2, n_head=2, n_embd=8))
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters" in diagrams.gpt2("B", 16, 8, 2, 2, 128).title


def test_a_stop_at_a_checkpoint_loses_nothing():
    assert "resumes from step 40, so 7 steps are computed twice" in diagrams.resume_timeline([20, 40], 47, 80).title
    assert "so no step is computed twice" in diagrams.resume_timeline([20, 40], 40, 80).title


def test_squares_of_standard_errors_add_up():
    title = diagrams.standard_error_of_difference(("A", 0.295, 0.003), ("B", 0.300, 0.004)).title
    assert title == "The difference is 0.0050 ± 0.0050: 1.0 standard errors from 0."
