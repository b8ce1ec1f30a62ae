"""The contents of the suite, read from the notebooks.

python notebooks/contents.py            writes the end of README.md, prerequisites.svg, glossary.md and summary.md
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import diagrams
import nbformat
import tyro
from diagrams.palette import COMMUNICATION, QUERY
from diagrams.text import FURTHER
from nbformat import NotebookNode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gpt2.system.errors import run_command

FOLDER = Path(__file__).resolve().parent
PACKAGE = FOLDER.parent / "gpt2"
# the terms of the glossary, as they stand in bold where they are introduced, by the number of the notebook
TERMS = {
    "00": "id, vector, weights, learning rate, gradient, optimiser, held out",
    "01": "bytes, token, vocabulary, tokenizer, byte-pair encoding, merge, encode, decode, document, loss, nat, bit",
    "02": "seed, embedding, channels, score, softmax, causal mask, query, key, value, self-attention, attention head, "
    "attention sink, induction heads, multi-head attention, block, leak, LayerNorm",
    "03": "residual stream, bias, activation function, residual connection, token embedding, "
    "position embedding, logits, dropout, overfitting, GELU, entropy, MLP",
    "04": "sampling, autoregressive, nucleus, key-value cache, memory-bound, grouped-query attention, top-p",
    "05": "target, cross-entropy, likelihood, micro-batch, kernel, perplexity, weight tying",
    "06": "checkpoint, shards, memory map, world size, epoch, all-reduce, pinned memory, micro-step, permutation",
    "07": "roofline, exponent, mantissa, underflow, autocast, memory hierarchy, arithmetic intensity, FlashAttention",
    "08": "curvature, warm-up, gradient accumulation, weight decay",
    "09": "ring all-reduce, reduce-scatter, all-gather, data parallelism, bucket, DDP, FSDP",
    "10": "corpus, shingles, MinHash, Jaccard similarity",
    "11": "standard error, arithmetic coder, top-1",
    "12": "preset, outlier detector, resume point, training state, signal handler",
    "13": "optimiser state, saved tensors, resident set, fake tensor, recomputation",
    "14": "singular value, Newton–Schulz step, Frobenius norm, Nesterov momentum, stochastic rounding",
    "15": "mixtures of experts, router, RMSNorm, rotary positions, YaRN, multi-query attention, sliding window, "
    "receptive field, sink logit, SwiGLU, load-balancing loss, MXFP4",
    "16": "scale-invariant, effective learning rate, unit magnitude, magnitude preservation, cosine attention, "
    "equilibrium, manifold, tangent space, retraction, Stiefel manifold",
    "17": "compute class, normalised perplexity, IsoFLOP group, power law, bootstrap, gradient noise scale, unbiased",
    "18": "silent bug",
}

# what stands in the box of a notebook in the drawing
LABELS = {
    "00": "the whole",
    "01": "tokens",
    "02": "attention",
    "03": "GPT-2",
    "04": "sampling",
    "05": "loss",
    "06": "loader",
    "07": "speed",
    "08": "AdamW",
    "09": "many GPUs",
    "10": "documents",
    "11": "scores",
    "12": "the run",
} | FURTHER
# reading paths: what a reader wants → the notebooks, and for whom
PATHS = {
    "only the architecture": ("00 01 02 03 04", "how GPT-2 turns text into text"),
    "only training": ("00 01 05 06 07 08 09 12", "for those who know the transformer"),
    "GPT-2 and its training": (" ".join(key for key in LABELS if key <= "12"), "in order"),
    "everything": (" ".join(LABELS), "in any order after 12"),
}


def find(prefixes: tuple[str, ...] = ()) -> list[Path]:
    """The notebooks in order: all, or those whose names start with one of the prefixes."""
    return [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if not prefixes or path.name.startswith(prefixes)]


def read(path: Path) -> NotebookNode:
    """Read a notebook file."""
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@dataclass(frozen=True)
class Lesson:
    """A notebook: its file, its title with the number, its first sentence, and all its code and text."""

    path: Path
    title: str
    promise: str
    code: str
    text: str

    @property
    def number(self) -> str:
        """The two digits that its name begins with."""
        return self.path.name[:2]

    @property
    def before(self) -> set[str]:
        """The numbers of the notebooks that it says are to be read before it."""
        line = re.findall(r"\*\*Before:\*\* (.*?) \*\*Time", self.text)[0]
        if "all the others" in line:
            return {number for number in LABELS if number < self.number}
        first, *more = re.findall(r"`(\d\d)_", line) or [""]
        if f"`{first}_" in line and "` to `" in line:
            return {f"{number:02d}" for number in range(int(first), int(more[0]) + 1)}
        return {first, *more} - {""}

    @property
    def minutes(self) -> int:
        """The minutes that it says it takes to read."""
        found = re.findall(r"\*\*Time:\*\* (an hour|ten|\d+)", self.text)[0]
        return {"an hour": 60, "ten": 10}.get(found) or int(found)

    @property
    def modules(self) -> list[str]:
        """The modules of `gpt2/` that it imports, in order: `data.loader`."""
        files = [path.relative_to(PACKAGE) for path in imported(self.code) if path.is_relative_to(PACKAGE)]
        return sorted(".".join(path.with_suffix("").parts) for path in files)

    def mentions(self, name: str) -> bool:
        """Whether a name stands in its code, or in backticks in its text."""
        word = re.compile(rf"\b{name}\b")
        quoted = re.findall(r"```.*?```|`[^`]+`", self.text, re.DOTALL)
        return any(word.search(text) for text in (self.code, *quoted))


def lessons() -> list[Lesson]:
    """All notebooks, in order."""
    found = []
    for path in find():
        notebook = read(path)
        heading, promise, *_ = notebook.cells[0].source.split("\n\n")
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        source = "\n".join(cell.source for cell in code(notebook))
        found.append(Lesson(path, heading.lstrip("# ").strip(), promise.split(". ")[0].rstrip(".") + ".", source, text))
    return found


def imported(source: str) -> set[Path]:
    """The files of this repository that some Python code imports directly. Imports inside functions count too."""
    names = set()
    for node in ast.walk(ast.parse(re.sub(r"^[ \t]*[%!].*$", "", source, flags=re.MULTILINE))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    folders = (PACKAGE.parent, FOLDER, PACKAGE.parent / "benchmarks")
    files = {folder / f"{name.replace('.', '/')}.py" for folder in folders for name in names}
    return {file for file in files if file.exists()}


def public_names() -> dict[str, list[str]]:
    """The public functions and classes per module; none of one that does not say "Built in notebook NN"."""
    names = {}
    for path in sorted(PACKAGE.rglob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        taught = "Built in notebook" in (ast.get_docstring(tree) or "")
        names[module] = [name for name in found if name not in ("main", "Options")] if taught else []
    return names


def table() -> str:
    """The suite as a Markdown table."""
    rows = ["| notebook | what it does | modules of `gpt2/` |", "|---|---|---|"]
    for lesson in lessons():
        modules = ", ".join(f"`{module}`" for module in lesson.modules)
        rows.append(f"| [{lesson.title}]({lesson.path.name}) | {lesson.promise} | {modules} |")
    return "\n".join(rows)


def paths() -> str:
    """The drawing of what depends on what, and the reading paths with their hours, as Markdown."""
    minutes = {lesson.number: lesson.minutes for lesson in lessons()}
    rows = ["| path | notebooks | to read |", "|---|---|---|"]
    for name, (numbers, whom) in PATHS.items():
        hours = sum(minutes[number] for number in numbers.split()) / 60
        rows.append(f"| {name}, {whom} | {numbers.replace(' ', ', ')} | {hours:.1f} hours |")
    drawing = prerequisites()
    return "\n".join([f"![{drawing.title} {drawing.description}](prerequisites.svg)", "", *rows])


def prerequisites() -> diagrams.Diagram:
    """The drawing of what depends on what. What a notebook needs includes what that needs."""
    needed: dict[str, set[str]] = {}
    for lesson in lessons():
        needed[lesson.number] = lesson.before.union(*(needed[number] for number in lesson.before))
    marked = {name: PATHS[name][0].split() for name in list(PATHS)[:2]}
    colours = dict(zip(marked, (QUERY, COMMUNICATION), strict=True))
    return diagrams.prerequisites(needed, LABELS, {name: (colours[name], marked[name]) for name in marked})


def glossary() -> str:
    """Every term with the sentence that introduces it, in alphabetical order. KeyError for a term that is not bold."""
    found_in = {}
    for lesson in lessons():
        text = re.sub(r"```.*?```", "", lesson.text, flags=re.DOTALL)
        sentences = re.split(r"(?<=[.!?:])\s+(?=[A-Z`*$])|\n| \| ", text)
        for term in TERMS[lesson.number].split(", "):
            found = [sentence for sentence in sentences if f"**{term}**".lower() in sentence.lower()]
            if not found:
                raise KeyError(f"{lesson.path.name} does not introduce {term} in bold")
            found_in[term] = f"**{term}** ([{lesson.number}]({lesson.path.name})): {found[0].strip('-| ')}"
    lines = [re.sub(r"\*\*", "", entry).replace(term, f"**{term}**", 1) for term, entry in found_in.items()]
    entries = "\n".join(f"- {line}" for line in sorted(lines, key=lambda line: line.strip("*").lower()))
    return f"# Glossary\n\nEach term, with the sentence that introduces it.\n\n{entries}\n\n## Notation\n\n{notation()}"


def notation() -> str:
    """The letters of the suite, as the table in notebook 02 has them."""
    return re.findall(r"\*\*Notation\.\*\*.*?\n\n(\|.*?)\n\n", lessons()[2].text, re.DOTALL)[0]


def summary() -> str:
    """The facts and equations with which the notebooks end."""
    parts = ["# Facts and equations"]
    for lesson in lessons():
        end = lesson.text.split("### Five facts to remember")[1].split("### The module")[0]
        facts, *equations = end.split("### Key equations")
        parts.append("\n\n".join([f"## [{lesson.title}]({lesson.path.name})", *map(str.strip, [facts, *equations])]))
    return "\n\n".join(parts)


def main() -> None:
    """Write the end of README.md, prerequisites.svg, glossary.md and summary.md."""
    index = FOLDER / "README.md"
    before = index.read_text(encoding="utf-8").split("![")[0]
    index.write_text(before + paths() + "\n\n" + table() + "\n", encoding="utf-8")
    prerequisites().save(FOLDER / "prerequisites.svg")
    for name, text in (("glossary", glossary()), ("summary", summary())):
        (FOLDER / f"{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, description=__doc__))
