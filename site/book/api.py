"""The pages about the modules of `gpt2/`, from their syntax trees: nothing is imported, so no torch is needed."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from book.links import module

SCRIPTS = ("train_gpt2.py", "fineweb.py")
INTRODUCTION = """# The modules

The final version of every piece that the lessons build, with its public functions and classes. One page per package,
lowest layer last.
"""


def pages(root: Path) -> dict[str, str]:
    """Page → its Markdown: one page per package, one for the modules beside them, one for the two scripts."""
    package = root / "gpt2"
    folders = sorted(path.parent for path in package.glob("*/__init__.py"))
    written = {
        "gpt2.md": page("gpt2", summary(package / "__init__.py"), sorted(package.glob("*.py")), root),
        "scripts.md": page("The two scripts", "The real run.", [root / name for name in SCRIPTS], root),
    }
    for folder in folders:
        about = summary(folder / "__init__.py")
        written[f"{folder.name}.md"] = page(f"gpt2.{folder.name}", about, sorted(folder.glob("*.py")), root)
    rows = [
        f"| [`gpt2.{folder.name}`](#gpt2.{folder.name}) | {summary(folder / '__init__.py')} |" for folder in folders
    ]
    tree = "\n".join(["gpt2", *(folder.name for folder in folders), "scripts"])
    written["index.md"] = "\n".join(
        [
            INTRODUCTION,
            "| package | what it holds |\n|---|---|",
            "| [`gpt2`](gpt2.md) | GPT-2 itself, its kernels, sampling, and the command `gpt2` |",
            *rows,
            "| [two scripts](scripts.md) | `fineweb.py` makes token shards, `train_gpt2.py` trains on them |",
            f"\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n",
        ]
    )
    return written


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]


def page(title: str, about: str, files: list[Path], root: Path) -> str:
    """The Markdown of a page: what the package is, then its modules."""
    label = f"({title})=\n" if title.startswith("gpt2.") else ""
    heading = f"`{title}`" if title.startswith("gpt2") else title
    parts = [f"{label}# {heading}\n\n{about}"]
    parts += [section(path, root) for path in files if path.name != "__init__.py"]
    return "\n\n".join(parts) + "\n"


def section(path: Path, root: Path) -> str:
    """One module: its docstring, its public functions and classes, and its source, folded."""
    name = path.relative_to(root).as_posix()
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    Qualified(tree).visit(tree)
    parts = [f"({module(name)})=\n## `{path.name}`", ast.get_docstring(tree) or ""]
    parts.append(f":::{{py:currentmodule}} {module(name)}\n:::")
    parts += [entry(node, "function", source) for node in public(tree) if not isinstance(node, ast.ClassDef)]
    parts += [entry(node, "class", source) for node in public(tree) if isinstance(node, ast.ClassDef)]
    fence = "`" * 6
    lines = len(source.splitlines())
    parts.append(f"<details class='source'><summary>Source of <code>{name}</code>, {lines} lines</summary>")
    parts.append(f"{fence}python\n{source}{fence}\n\n</details>")
    return "\n\n".join(part for part in parts if part)


class Qualified(ast.NodeTransformer):
    """Gives the names of this package in annotations their module, which Sphinx links to and doesn't show."""

    def __init__(self, tree: ast.Module):
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2."):
                self.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """An argument with its annotation."""
        node.annotation = node.annotation and self.qualify(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function with its arguments and what it returns."""
        node.returns = node.returns and self.qualify(node.returns)
        self.generic_visit(node.args)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        """A field of a dataclass."""
        node.annotation = self.qualify(node.annotation)
        return node

    def qualify(self, annotation: ast.expr) -> ast.expr:
        """The annotation with all of its names replaced."""
        names = [node for node in ast.walk(annotation) if isinstance(node, ast.Name)]
        for name in names:
            name.id = self.names.get(name.id, name.id)
        return annotation


def public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of a module or class whose names don't begin with an underscore."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


def entry(node: ast.FunctionDef | ast.ClassDef, kind: str, source: str, colons: int = 6) -> str:
    """A function, class or method as a directive of Sphinx's Python domain, nested by the number of colons."""
    fence = ":" * colons
    text = ast.get_docstring(node) or ""
    parts = [f"{fence}{{py:{kind}}} {signature(node)}"]
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    options = [name for name in ("classmethod", "staticmethod") if name in decorators]
    if kind == "method" and "property" in decorators:
        parts = [f"{fence}{{py:property}} {node.name}", *options]
    parts += [f":{name}:" for name in options if kind == "method"]
    parts += ["", text]
    if isinstance(node, ast.ClassDef):
        parts += ["", *(field(*one, colons - 1) for one in fields(node, source))]
        parts += [entry(child, "method", source, colons - 1) for child in public(node)]
    return "\n".join([*parts, fence])


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The name, the arguments and what is returned, on one line. A class has the arguments of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        made = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return node.name + (f"({arguments(made[0])})" if made else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({arguments(node)}){returns}"


def arguments(node: ast.FunctionDef) -> str:
    """The arguments as they are written, without `self` and `cls`."""
    given = node.args
    for names in (given.posonlyargs, given.args):
        if names and names[0].arg in ("self", "cls"):
            del names[0]
    return ast.unparse(given)


def fields(node: ast.ClassDef, source: str) -> Iterator[tuple[str, str, str, str]]:
    """The fields of a dataclass: name, type, default, and the docstring below it."""
    for here, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            value = ast.get_source_segment(source, here.value) if here.value else ""
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            text = str(below.value.value) if documented else ""
            yield here.target.id, ast.unparse(here.annotation), " ".join((value or "").split()), text


def field(name: str, kind: str, value: str, about: str, colons: int) -> str:
    """A field as a directive of Sphinx's Python domain."""
    fence = ":" * colons
    options = [f":{key}: {json.dumps(text)}" for key, text in (("type", kind), ("value", value)) if text]
    return "\n".join([f"{fence}{{py:attribute}} {name}", *options, "", " ".join(about.split()), fence])
