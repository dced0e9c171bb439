"""The base of every value that this floor writes to a file or a report: frozen, and unknown keys are errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
