"""Ranges of settings, declared on the fields of a dataclass (`Annotated[float, Ge(0)]`) and checked in one place."""

import dataclasses
import operator
from typing import Any, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from gpt2.system.errors import UserError

# kind of bound → comparison, and the words for it behind "give"
BOUNDS = {
    Ge: (operator.ge, "{:g}"),
    Gt: (operator.gt, "more than {:g}"),
    Le: (operator.le, "up to {:g}"),
    Lt: (operator.lt, "below {:g}"),
}


def check_ranges(settings: Any, prefix: str = "--") -> None:
    """Raise UserError for the first number in a tree of dataclasses that lies outside the range of its field."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{field.name}.")
            continue
        bounds = [bound for bound in getattr(hints[field.name], "__metadata__", ()) if type(bound) in BOUNDS]
        values = value if isinstance(value, tuple) else (value,)
        numbers = [each for each in values if isinstance(each, int | float)]
        if not all(BOUNDS[type(bound)][0](each, _limit(bound)) for each in numbers for bound in bounds):
            flag, shown = prefix + field.name.replace("_", "-"), " ".join(map(str, values))
            raise UserError(f"{flag} {shown} is out of range; give {_describe(bounds)}")


def _limit(bound: Any) -> float:
    return getattr(bound, type(bound).__name__.lower())


def _describe(bounds: list[Any]) -> str:
    """`0 or more`, `more than 0`, `0 to 1`, `0 to below 1`, `more than 0, up to 1`."""
    words = [BOUNDS[type(bound)][1].format(_limit(bound)) for bound in bounds]
    if isinstance(bounds[0], Ge):
        return f"{words[0]} to {words[1].removeprefix('up to ')}" if len(words) > 1 else f"{words[0]} or more"
    return ", ".join(words)
