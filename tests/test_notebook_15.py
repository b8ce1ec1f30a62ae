"""Notebook 15: the titles of its diagrams are computed, and its checker of routers takes any order of experts."""

import pytest
from test_checks import EXERCISES, told
from test_diagrams import draw


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("rotary", "A distance of 2 gives the score 1.07, wherever the two positions are."),
        ("yarn", "YaRN keeps 9 fast pairs, slows 14 pairs 32 times, and blends 9."),
        ("shared_heads", "With 2 heads of keys and values for 8 query heads, the cache shrinks to 1/4."),
        ("window_reach", "A window of 3 reaches 2 positions back in one layer, and 6 in 3 layers."),
        ("dispatched", "5 tokens with 2 experts each make 10 rows, and 5 go to expert 2."),
        ("expert_use", "In run B, 2 of 8 experts do all the work."),
    ],
)
def test_a_title_is_computed_from_the_data(name, title):
    assert draw(f"modern.{name}").title == title


def test_a_correct_router_may_order_its_experts_otherwise(capsys):
    solution = EXERCISES["modern.route"][1]
    backwards = solution.replace("logits.softmax(-1), chosen", "logits.softmax(-1).flip(-1), chosen.flip(-1)")
    assert told("modern.route", backwards, capsys) == "Right.\n"
