"""Tables that a user wrote, checked by pydantic: unknown keys are errors, and every problem is one line that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from secsplit.errors import nearest


class Strict(BaseModel):
    """A table of the run file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain(model: type[BaseModel], problem: Any, tables: Mapping[str, Any]) -> str:
    """One line for one of pydantic's problems: key, what came, what was expected, the nearest known key."""
    where = [
        str(part) for part in problem["loc"] if not str(part).startswith(("function-", "literal[", "constrained-"))
    ]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(where[-1], _known_keys(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing; this key is required"
    return f"{key}: got {problem['input']!r}; {problem['msg'].removeprefix('Value error, ')}"


def _known_keys(model: Any, location: Sequence[str | int]) -> list[str]:
    """The keys of the table at `location`, found by walking the models' fields."""
    for part in location:
        fields = getattr(model, "model_fields", None)
        if fields is not None:
            field = fields.get(part)
            model = field.annotation if field else None
        inner = [a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if inner and (fields is None or not hasattr(model, "model_fields")):
            model = inner[0]
    return list(getattr(model, "model_fields", {}))
