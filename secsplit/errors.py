"""What can go wrong above the channel, and whose fault it is.

SplitError
 |- RunError          a run file, topology, model or data that cannot work; exit code 2
 |   |- TopologyError     the graph makes no sense
 |   |- CutError          the model cannot be cut there
 |   `- DataError         data missing, malformed or without the column asked for
 |- LedgerError       the privacy ledger forbids a message; nothing was sent; exit code 1
 |   |- BudgetSpent       it would cost more than this party allows
 |   |- LedgerDamaged     the ledger was edited, cut short or rolled back
 |   `- NoiseRedrawn      the same release would leave with other bytes, so that its noise could be averaged away
 |- EnvironmentFault  this machine cannot do it (port in use, disk full, package missing); exit code 3
 `- PeerError         what came from a peer is not what the run agreed on, or it went away; exit code 4
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SplitError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class RunError(SplitError):
    """A run that cannot work: says which file and key, what was expected, what came, and the fix."""

    exit_code = 2


class TopologyError(RunError):
    """A graph that makes no sense."""


class CutError(RunError):
    """A model that cannot be cut where it was asked."""


class DataError(RunError):
    """Data that is missing, malformed or lacks what was asked for."""


class LedgerError(SplitError):
    """The privacy ledger forbids a message; nothing was sent."""

    exit_code = 1


class BudgetSpent(LedgerError):
    """A message would cost more privacy than this party allows."""


class LedgerDamaged(LedgerError):
    """The ledger on disk was edited, cut short or rolled back."""


class NoiseRedrawn(LedgerError):
    """The same release would leave twice with different bytes."""


class EnvironmentFault(SplitError):
    """This machine cannot do it."""

    exit_code = 3


class PeerError(SplitError):
    """A peer sent what the run did not agree on, or went away."""

    exit_code = 4

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"peer {peer!r}: {reason}")
        self.peer = peer


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to end an error with: the nearest known name, and what there is."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) if names else "none"
    return f"did you mean {close[0]!r}? (known: {listed})" if close else f"known: {listed}"
