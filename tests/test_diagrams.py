"""The diagrams of the notebooks are valid, readable on any theme, and say what they find."""

import base64
import inspect
import math
import operator
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.font_manager import FontProperties, findfont
from PIL import ImageFont

from gpt2.model import GPTConfig
from gpt2.planning import memory as planning

sys.path.insert(0, str(ROOT / "notebooks"))

import diagrams
from diagrams import magnitudes, memory, modern, muon, scaling, silent_bugs
from diagrams.drawing import Canvas, Diagram
from diagrams.palette import COLOURS, DARKEST, PALETTE, PAPER, SMALLEST, text_width
from diagrams.runs import PARTS as CONTENTS

WORDS = ["The", " old", " man", " looked", " at"]
CHANCES = [(" him", 0.40), (" the", 0.25), (" her", 0.15), (" his", 0.10), (" it", 0.06), (" me", 0.04)]
QUERY, KEYS = [1.3, 0.2, 0.9, -0.5], torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).tolist()
SCORES = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
WEIGHTS = SCORES.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -math.inf).softmax(-1).tolist()
ROW, VALUES = [1.2, 0.3, -0.5, 2.1, 0.8, 0.1, 1.7, -0.2, 0.6], [0.5, -0.2, 1.0, 0.3, 1.2, 0.4, -0.3, 0.8, 0.1]
MERGES = [("bytes", [b"a", b"t", b" ", b"a", b"t"]), ("merge 1", [b"at", b" ", b"at"]), ("merge 2", [b"at ", b"at"])]
PARTS = [[8, 6, 5, 2], [3, 0, 0, 0], [1, 8, 6, 9], [5, 6, 9, 7]]
POINTS = {"MLP": (190.0, 1.2e11), "GELU": (1.25, 8e9), "residual": (0.083, 9e9)}
RATES = {warmup: [6e-4 * min((step + 1) / warmup, 1 - step / 250) for step in range(200)] for warmup in (5, 20)}
ITEM = (
    "When the water boils, he",
    ["leaves.", "pours it out.", "paints it.", "reads it aloud to the people in the room."],
)
LOSSES = [15.4, 54.3, 47.3, 66.6], [5, 14, 11, 19], 1

NEEDED = {f"{i:02d}": {f"{j:02d}" for j in range(i)} for i in range(19)}

# notebook 13
KEPT = [
    ("ln_1", 1288.0),
    ("c_attn", 1280.0),
    ("attention", 8960.0),
    ("c_proj", 1280.0),
    ("ln_2", 1288.0),
    ("mlp.c_fc", 1280.0),
    ("GELU", 5120.0),
    ("mlp.c_proj", 5120.0),
]
LEVELS = {"none": ([], 25616.0, 0.0), "mlp": (["GELU", "mlp.c_proj"], 15376.0, 0.08), "block": (["GELU"], 1280.0, 0.2)}
PLANNED = vars(planning.memory(GPTConfig(), planning.Setup()))
CURVE = [10.0, 20.0, 35.0, 60.0, 110.0, 80.0, 40.0, 55.0, 20.0]
CELLS = [(0, 8e9, "--recompute block"), (32, 15.5e9, ""), (256, 90e9, "")]
RANKS = [{"weights": 8.0e6, "gradients": 8.0e6, "averages": 16.0e6, "more": 8.0e6}] * 2

# notebook 14
FALLING = [10 ** (-5 * i / 63) for i in range(64)]
KINDS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

# notebook 15
TURNS = [4096 * 150_000 ** (-2 * i / 64) / (2 * math.pi) for i in range(32)]
SLOWED = [min(1.0, max(0.0, (i - 8.1) / 9.3)) for i in range(32)]
REACHES = [[[int(s <= t and t - s <= 2 * n) for s in range(10)] for t in range(10)] for n in (1, 2, 3)]
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
WAVE = [0.6 * math.sin(3.1 * i) for i in range(32)]
CODES = [math.copysign(min(FP4, key=lambda one, w=w: abs(one - 8 * abs(w))), w) for w in WAVE]
USE = [0.12, 0.13, 0.11, 0.14, 0.12, 0.13, 0.1, 0.15], [0.5, 0.5, 0, 0, 0, 0, 0, 0]

# notebook 16
PAIRS = [("linear layer, weights × 2", 2.0, "NormalisedLinear", 1.0), ("SiLU", 0.6, "SiLU / 0.596", 1.0)]

# notebook 17
SIZES = 1.8e5, 4.6e5, 8.4e5, 1.31e6, 1.88e6, 2.56e6


def valley(best, lowest, sizes=SIZES):
    """A valley with its minimum there, as the notebook hands it to the diagram."""
    losses = [lowest + 0.04 * math.log(size / best) ** 2 for size in sizes]
    return list(sizes), losses, np.polyfit(np.log(sizes), losses, 2).tolist()


# notebook 18
PLACES = {
    "text": {"ids wrapped": "harms the model", "shard ends lost": "within the noise"},
    "update": {f"bug number {i}": "only falsifies the log" for i in range(9)},
    "log": {"one lucky seed": "only falsifies the log"},
}
DAMAGE = {f"bug {i}": (0.3 * 2**i, -(1.5**i)) for i in range(12)} | {"same place": (0.3, 1.0), "none": (0.0, 2.5)}
MOVES = {
    "random vector ": ([0.0] * 7 + [2.1, 0.3, 0.2], True),
    "+1 in all channels": ([0.0] * 7 + [1.0, 0.0, 0.0], False),
    "random vector": ([0.2] * 7 + [2.1, 0.3, 0.2], False),
}

# function → arguments, of several sizes where the layout depends on them
EXAMPLES = {
    "accumulation": [([0.21, 0.35, -0.08, 0.17],), ([1.0, 2.0],)],
    "adam_averages": [([2, 1.5, -0.5, 1.2, 0.8, 1.9, -0.3, 1.1],)],
    "attention_matrix": [
        (WORDS, WEIGHTS),
        (WORDS + WORDS, np.tril(np.full((10, 10), 0.1)).tolist(), "head 3 of block 0"),
    ],
    "bits_per_byte": [({"8 bits": 8.0, "gzip": 3.0, "xz": 2.7, "model, 512": 2.6},)],
    "bpe_merges": [(MERGES,)],
    "checkpoint": [(), (CONTENTS, {"weights": 498e6})],
    "cross_entropy": [(CHANCES, target) for target, _ in CHANCES],
    "data_pipeline": [([("documents", 1000), ("language", 871), ("repetition", 590)], 8)],
    "ddp_timeline": [(40, [20] * 4, [18] * 4), (9, [9, 6], [30, 9])],
    "gpt2": [(), (8, 256, 320, 6, 5, 4096)],
    "gradient_flow": [([0.9, 0.8, 0.85, 0.7], [2e-7, 4e-5, 0.01, 0.3])],
    "hellaswag": [(*ITEM, *LOSSES)],
    "kv_cache": [(WORDS, 3), ([*WORDS, " the"], 2)],
    "loader_line": [([str(i) for i in range(33)],), ([str(i) for i in range(17)], 4, 4, 1)],
    "masked_softmax": [(WORDS, SCORES.tolist())],
    "memory_hierarchy": [()],
    "mlp": [()],
    "multi_head": [(), (2, 5, 12, 3)],
    "number_formats": [(), (70000.0,), (-0.1,)],
    "one_query": [
        (WORDS, QUERY, KEYS, KEYS),
        (WORDS[:3], [1.0, -1.0], [[1, 2], [0, 1], [3, 1]], [[1, 0], [0, 1], [2, 2]]),
    ],
    "pipeline": [(stage,) for stage in range(19)],
    "prerequisites": [
        (needed, dict.fromkeys(needed, "label"), {"first": (COLOURS["query"], ["00", "12"])})
        # 13 to 18 have no place of their own, and a seventh one stands in a second row
        for needed in (NEEDED, dict([*NEEDED.items()][:13]), NEEDED | {"19": ["12"]})
    ],
    "residual_block": [(), (2, 5, 12)],
    "resume_timeline": [([20, 40, 60, 80], 47, 80), ([40, 80], 40, 80)],
    "ring_all_reduce": [(PARTS,), ([[1, 2, 3]] * 3,)],
    "roofline": [({"fp32": 7.3e10, "bf16": 2e11}, 3.8e10, POINTS, "Memory limits most parts.")],
    "sampling_rules": [(CHANCES,), (CHANCES, 6, 0.3)],
    "schedule": [(RATES[20], 20, "linear"), (RATES[5], 5, "linear")],
    "shifted_targets": [(WORDS, [0.012, 0.216, 0.02, 0.234])],
    "standard_error_of_difference": [
        (("A", 0.295, 0.0046), ("B", 0.300, 0.0046)),
        (("A", 3.28, 0.01), ("B", 3.20, 0.005)),
    ],
    "text_to_logits": [(WORDS, [464, 1468, 582, 3114, 379], KEYS, CHANCES)],
    "tiled_softmax": [(ROW, VALUES), (ROW[:8], VALUES[:8], 4)],
    "training_loop": [(3.214, 1.43, 1.0, 6e-4)],
    "view_permute": [(), (2, 3, 2)],
    "zero_stages": [(124_439_808, 4), (1_557_611_200, 8, [9e9, 9e9, 6e10, 1.6e11])],
    "memory.kept_in_layer": [(KEPT, 320)],
    "memory.peak_parts": [
        ({"d12, 1 sequence": (PLANNED, 3.2e9), "a much longer name": (PLANNED, 3.3e9)},),
        ({"one step alone": (PLANNED, 3e9)},),
    ],
    "memory.recompute_levels": [(KEPT, LEVELS)],
    "memory.logit_chunks": [(8192, 50_304, 768, 5336), (8192, 50_304, 768, 64), (100, 4096, 320, 100)],
    "memory.rank_shares": [
        ([RANKS] * 4,),
        ([RANKS, [{"weights": 4e6, "gradients": 4e6, "averages": 8e6, "more": 0.0}] * 2],),
    ],
    "memory.what_fits": [({"d12": CELLS, "d48": [(0, 3e10, "not with one GPU")] * 3}, (8, 24, 141))],
    "memory.step_curve": [
        ([one * 1e6 for one in CURVE * 40], [("AdamW", 40), ("forward", 160), ("backward", 360)], 1.1e8)
    ],
    "muon.ellipses": [
        ([[3, 2], [1, 1.5]], [[0.976, 0.217], [-0.217, 0.976]], [[-0.787, -0.617], [-0.617, 0.787]]),
    ],
    "muon.newton_schulz": [(), (3,)],
    "muon.spectra": [(FALLING, {"from the Frobenius norm": FALLING, "from the tighter bound": FALLING})],
    "muon.muon_step": [({"gradient": [0.01, 0.02, 0.05], "together": [3, 4, 9], "apart": [10, 10, 9]},)],
    "muon.owners": [
        ([f"{i}.{kind}" for i in range(12) for kind in KINDS], [9, 3, 9, 9] * 12, [i % 8 for i in range(48)], "A unit"),
        ([f"0.{kind}" for kind in KINDS], [9, 3, 9, 9], [0, 0, 1, 0], "A unit"),
    ],
    "muon.bf16_line": [([1.3, 0.3, 0.05], 1e-3), ([-0.7], 2e-3)],
    "modern.rotary": [
        ((1.0, 0.4), (0.6, 0.9), [(2, 0), (4, 2), (6, 4), (6, 0)], 0.5),
        ((-2.0, 0.1), (0.6, 0.9), [(3, 0), (4, 1), (9, 0)], 0.316),
    ],
    "modern.yarn": [(TURNS, SLOWED, 32.0, 4096)],
    "modern.shared_heads": [(8, (8, 2, 1), (49152, 12288, 6144)), (6, (6, 3, 1), (6, 3, 1))],
    "modern.window_reach": [(REACHES, 3), (REACHES[:2], 3)],
    "modern.sink": [(WORDS, [0.3, -0.2, 0.9, 0.1, -0.4], 3.0), (WORDS[:2], [4.0, 1.0], -2.0)],
    "modern.dispatched": [
        (WORDS, [[0, 2], [2, 3], [2, 1], [0, 2], [3, 2]], [[0.6, 0.4]] * 5, 4),
        (WORDS[:3], [[1], [1], [0]], [[1.0]] * 3, 3),
    ],
    "modern.expert_use": [
        ({"A": (USE[0], 0.115), "B": (USE[1], 0.382), "C": (USE[0], 0.066)},),
        ({"A": (USE[0], 0.1), "B": (USE[1], 0.4)},),
    ],
    "modern.mxfp4": [(WAVE, CODES, -3)],
    "magnitudes.orthogonal_steps": [(1.0, 0.5), (2.0, 0.3, 4)],
    "magnitudes.part_magnitudes": [(PAIRS,), (PAIRS * 3,)],
    "magnitudes.block_magnitudes": [([1.0, 1.0, 0.44, 1.0, 1.06, 1.03, 1.01, 1.03, 0.98, 1.05], 0.3)],
    "magnitudes.manifold_step": [((0.8, 0.6), (1.0, -0.2), 0.4), ((3.0, 4.0), (0.9, 0.1), 0.25)],
    "scaling.flops_shares": [([("width 32", 3e5, 7.9e5, 3.9e5), ("GPT-2 124M", 5.1e8, 2.3e8, 1.1e8)],)],
    "scaling.compute_class": [
        ([("mini", 238_719, 65_536), ("small", 55_416, 65_536), ("large", 7_058, 65_536)], 6),
    ],
    "scaling.valleys": [
        ({4e12: valley(2.5e5, 2.6), 1.6e13: valley(5e5, 2.4), 6.4e13: valley(1e6, 2.2)},),
        ({1e20: valley(5e8, 2.3, (1e8, 4e8, 1.6e9, 6.4e9))}, "nats per token"),
        ({4e12: valley(2.5e5, 2.6), 1.6e13: valley(9e6, 2.4)},),  # the second minimum lies outside its runs
    ],
    "scaling.gradient_noise": [
        (1.2, 9.5, {2: 5.9, 4: 3.5, 8: 2.5, 16: 1.9, 32: 1.4, 64: 1.3, 128: 1.3}),
        (0.01, 2.0, {8: 0.3}),
    ],
    "scaling.step_shares": [
        ([("8 GPUs, batch 0.5 M", 311, 3.1, 0.4), ("512 GPUs, batch 0.5 M", 4.9, 3.1, 36.5)],),
    ],
    "silent_bugs.loop_map": [(PLACES,)],
    "silent_bugs.damage_and_visibility": [
        (DAMAGE, "Of 12 bugs that harm the model, 3 make the log look better."),
    ],
    "silent_bugs.leak_test": [(MOVES, 7)],
    "silent_bugs.shifted_labels": [
        (WORDS, {"right": (WORDS, [1.0, 2, 3, 4, 5]), "shifted twice": (WORDS, [9.0, 8, 7, 6, 5])}),
    ],
}
CALLS = [(name, arguments) for name, examples in EXAMPLES.items() for arguments in examples]
each = pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])


def draw(name, arguments=None):
    """The diagram of these arguments; without them, of the first example."""
    return operator.attrgetter(name)(diagrams)(*(EXAMPLES[name][0] if arguments is None else arguments))


def parse(diagram):
    """The root of the SVG, without the namespace in the names of its elements."""
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", diagram.svg, count=1))


def texts(root):
    """The texts that a reader sees."""
    return [element.text for element in root.iter("text")]


def extent(text):
    """Left, top, right and bottom of a text, by the estimate of its width."""
    size, xs = float(text.get("font-size", 13)), [float(x) for x in text.get("x").split()]
    if len(xs) > 1:  # letters with a place each
        return xs[0] - 0.3 * size, float(text.get("y")) - 0.75 * size, xs[-1] + 0.3 * size, float(text.get("y"))
    width = text_width(text.text, size, text.get("font-weight") is not None, text.get("font-family") is not None)
    left = xs[0] - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "middle")]
    return left, float(text.get("y")) - 0.75 * size, left + width, float(text.get("y")) + 0.1 * size


def overlaps(a, b, slack=1.5):
    """Whether two extents have more in common than a margin."""
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack


def luminance(colour):
    """Relative luminance of WCAG."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """Contrast ratio of WCAG, 1 to 21."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def blend(colour, opacity):
    """The colour at this opacity on the paper of the panel."""
    pairs = [(int(colour[i : i + 2], 16), int(PAPER[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02X}" for a, b in pairs)


def test_every_diagram_has_an_example_and_there_are_more_than_60():
    functions = {name for name in diagrams.__all__ if inspect.isfunction(getattr(diagrams, name))}
    for module in (memory, muon, modern, magnitudes, scaling, silent_bugs):
        drawing = inspect.getmembers(module, lambda one: getattr(one, "__annotations__", {}).get("return") is Diagram)
        functions |= {f"{module.__name__.split('.')[1]}.{name}" for name, _ in drawing if not name.startswith("_")}
    assert functions == set(EXAMPLES)
    assert len(functions) >= 60


@each
def test_it_is_an_image_with_its_finding_and_a_description(name, arguments):
    diagram = draw(name, arguments)
    root = parse(diagram)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.find("title").text == diagram.title
    assert root.find("desc").text == diagram.description
    first, *more = diagram.title.split()
    assert len(more) >= 3 and diagram.title.endswith(".")
    assert first[0] in "“0123456789−" or first[0].isupper() or first in ("bf16", "view")
    assert len(diagram.description) > 40 and diagram.description.endswith(".")
    drawn = " ".join(texts(root))
    assert all(word in drawn for word in diagram.title.split())


@each
def test_it_needs_nothing_from_outside_and_is_the_same_every_time(name, arguments):
    diagram = draw(name, arguments)
    assert diagram.svg == draw(name, arguments).svg
    assert len(diagram.svg.encode()) < 40_000
    names = {element.tag for element in parse(diagram).iter()}
    assert names <= {"svg", "title", "desc", "g", "rect", "text", "polyline", "polygon", "circle", "path"}
    assert " id=" not in diagram.svg and "href" not in diagram.svg and "currentColor" not in diagram.svg


@each
def test_its_colours_are_those_of_the_palette(name, arguments):
    root = parse(draw(name, arguments))
    used = {element.get(kind) for element in root.iter() for kind in ("fill", "stroke")} - {None, "none"}
    assert used <= PALETTE
    paper = next(root.iter("rect"))
    assert paper.get("fill") == PAPER and float(paper.get("width")) == float(root.get("width")) - 1


@each
def test_labels_fit_into_their_boxes(name, arguments):
    root = parse(draw(name, arguments))
    for box in root.iter("g"):
        if box.get("class") == "box":
            place = [float(box.find("rect").get(name)) for name in ("x", "y", "width", "height")]
            for text in box.iter("text"):
                left, top, right, bottom = extent(text)
                assert place[0] <= left and right <= place[0] + place[2], text.text
                assert place[1] <= top and bottom <= place[1] + place[3], text.text


@each
def test_no_text_covers_another_or_leaves_the_panel(name, arguments):
    root = parse(draw(name, arguments))
    found = [(text.text, extent(text)) for text in root.iter("text") if text.text.strip()]
    width, height = float(root.get("width")), float(root.get("height"))
    for i, (text, place) in enumerate(found):
        assert place[0] >= 4 and place[1] >= 4 and place[2] <= width - 4 and place[3] <= height - 4, text
        assert not [other for other, there in found[:i] if overlaps(place, there)], text
    assert min(float(text.get("font-size", 13)) for text in root.iter("text")) >= SMALLEST - 1


def test_text_is_estimated_wider_than_it_is():
    font = findfont(FontProperties(family="DejaVu Sans"))
    for text in (
        "residual stream",
        "softmax, 12 heads",
        "GPT-2 124,439,808",
        "Illustrated (B, T, C) → x",
        "WWW mmm 0.5 %",
    ):
        for size in (11, 13, 16):
            assert text_width(text, size) >= 0.98 * ImageFont.truetype(font, size).getlength(text), text


def test_text_has_enough_contrast_on_every_area_and_cell():
    for name, colour in COLOURS.items():
        assert contrast(colour.text, colour.fill) >= 4.5, name
        assert contrast("#1F2933", blend(colour.line, DARKEST)) >= 4.5, name
        assert contrast(colour.text, PAPER) >= 4.5, name
    lines = [COLOURS[name].line for name in ("query", "key", "value", "gradient", "communication", "residual")]
    assert len({*lines}) == 6


SHAPES = {
    "text_to_logits": {"(T, C)", "(T, V)"},
    "residual_block": {"(B, T, C)"},
    "multi_head": {"(B, T, 768)"},
    "gpt2": {"(B, T)", "(B, 1024, 768)"},
}


@pytest.mark.parametrize(("name", "shapes"), SHAPES.items(), ids=list(SHAPES))
def test_arrows_carry_shapes(name, shapes):
    root = parse(draw(name))
    arrows = [group for group in root.iter("g") if group.get("class") == "arrow"]
    assert shapes <= {text.text for arrow in arrows for text in arrow.iter("text")}


def test_a_notebook_gets_an_image_with_an_alternative_text(tmp_path):
    diagram = diagrams.residual_block()
    shown = diagram._repr_html_()
    assert f'alt="{diagram.title} {diagram.description}"' in shown
    assert base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1]).decode() == diagram._repr_svg_() == diagram.svg
    diagram.save(tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text(encoding="utf-8") == diagram.svg


def test_names_of_tokens_are_escaped():
    root = parse(diagrams.cross_entropy([("<|endoftext|>", 0.7), ("&", 0.3)], "&"))
    assert {"<|endoftext|>", "&"} <= {*texts(root)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no notebook 19; the stages are 00"):
        diagrams.pipeline(19)
    with pytest.raises(ValueError, match="does not fit into a box of 40 × 20"):
        Canvas("A title.", "A description.").box(0, 0, 40, 20, "a label that is far too long")
    with pytest.raises(ValueError, match="at most 6"):
        diagrams.one_query(["a"], [0.0] * 7, [[0.0] * 7], [[0.0] * 7])
