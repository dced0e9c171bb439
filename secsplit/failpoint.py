"""Places where a test may kill the process, as a power cut would: SECSPLIT_FAILPOINT=[PARTY/]NAME:N.

The N-th time that a place of that name is passed (by that party), the process gets SIGKILL: nothing is flushed, nothing
is told. Unset, a place costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Literal

Place = Literal["turn", "send", "receive", "save", "write", "saved"]
_WANTED = os.environ.get("SECSPLIT_FAILPOINT", "")


class _Countdown:
    """How often the wanted place may still be passed."""

    def __init__(self, wanted: str) -> None:
        where, _, times = wanted.partition(":")
        self.party, _, self.place = where.rpartition("/")
        self.left = int(times) if times.isdecimal() else 1

    def passed(self, place: Place, party: str) -> None:
        if place != self.place or self.party not in ("", party):
            return
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


_countdown = _Countdown(_WANTED) if _WANTED else None


def failpoint(place: Place, party: str = "") -> None:
    """Die here, if a test asked for it."""
    if _countdown is not None:
        _countdown.passed(place, party)
