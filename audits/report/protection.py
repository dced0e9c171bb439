"""Sections 6 and 7: how channels protected the messages and stood attack; what was charged, and what contradicts it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from audits.channel import Trial
from audits.dp_found import DpFound
from audits.finished import Finished
from audits.report import words
from audits.report.model import Attacked, Channel, Charged, Dp, EpsilonCurve, EpsilonPoint, Link
from audits.spent import spent
from secsplit.accounting import INPUTS
from secsplit.claims import EVERYONE
from secsplit.forecast import Forecast, forecasts
from secsplit.run import Run
from secsplit.rundir import RunDir
from secsplit.schedule import EpochEnd

POINTS = 40  # of a curve of epsilon, at most


def channel_of(folder: RunDir, trials: Sequence[Trial]) -> Channel:
    """The channels of the run, and the faults that were committed on channels of the same kinds."""
    links = tuple(_link(p.name, peer, told) for p in folder.parties() for peer, told in p.channels().items())
    used = {suite for link in links for suite in link.suite.split(", ")}
    attacked = tuple(_attacked(suite, used, trials) for suite in dict.fromkeys(trial.suite for trial in trials))
    if not links:
        return Channel(
            encrypted=False, links=(), still_visible=(), attacked=attacked, trials=tuple(trials),
            about="This run was simulated in one process: no network was used, and nothing is claimed of a channel.",
        )  # fmt: skip
    padded = all(link.padded for link in links)
    visible = (
        "who talks to whom, and when",
        "how many records of one fixed size are sent" if padded else "the size of every message",
        "how long each side computes",
    )
    return Channel(
        encrypted=True, links=links, still_visible=visible, attacked=attacked, trials=tuple(trials),
        about="Every message crossed a channel on which both ends proved who they are and everything is encrypted. "
        "That keeps out the network; it does not keep anything from the party at the other end.",
    )  # fmt: skip


def _attacked(suite: str, used: Collection[str], trials: Sequence[Trial]) -> Attacked:
    mine = [trial.outcome for trial in trials if trial.suite == suite]
    return Attacked(
        suite=suite, used=suite in used, faults=len(mine), refused=mine.count("refused"),
        unchanged=mine.count("delivered unchanged"), changed=mine.count("DELIVERED CHANGED"),
    )  # fmt: skip


def _link(party: str, peer: str, told: Mapping[str, Any]) -> Link:
    """A session's facts: one channel after the other, where the connection broke and was resumed."""
    channels = told["channels"]
    return Link(
        party=party,
        peer=peer,
        suite=", ".join(dict.fromkeys(facts["suite"] for facts in channels)),
        own_fingerprint=channels[0]["own_fingerprint"],
        peer_fingerprint=channels[0]["peer_fingerprint"],
        connections=len(channels),
        resent=told["resent"],
        bytes_sent=sum(facts["bytes_sent"] for facts in channels),
        bytes_received=sum(facts["bytes_received"] for facts in channels),
        rekeys=sum(facts["rekeys"] for facts in channels),
        refused=sum(facts["refused"] for facts in channels),
        padded=all(facts["padded"] for facts in channels),
    )


def dp_of(finished: Finished, folder: RunDir, tested: DpFound | None) -> Dp:
    """What was spent by the ledgers, over the training, and what was measured against it."""
    sites = finished.truth.sites
    lines = tuple(Charged(**line.model_dump(), site=sites.get(line.cast, "")) for line in spent(folder))
    if not lines:
        return Dp(
            spent=(), not_covered=(), curves=(), tested=tested,
            about="No differential privacy is claimed. What is said about leakage rests on attacks, which show what "
            "can be learnt and never that nothing more can.",
        )  # fmt: skip
    finite = any(line.epsilon is not None for line in lines)
    return Dp(
        spent=lines, not_covered=words.NOT_COVERED, curves=tuple(_curves(finished, tested)), tested=tested,
        about="Epsilon bounds what anybody can learn about one record, whatever they know and however they attack. "
        + ("It holds for what is named, and for nothing else." if finite else "Here no finite bound exists."),
    )  # fmt: skip


def _curves(finished: Finished, tested: DpFound | None) -> Iterator[EpsilonCurve]:
    """One for each finite claim against everyone together, of training records."""
    run = finished.run
    ends = {event.epoch + 1: event.step for event in finished.schedule if isinstance(event, EpochEnd)}
    epochs = sorted({max(1, round(len(ends) * i / POINTS)) for i in range(1, POINTS + 1)})
    claims = {epoch: _claims(run, epoch) for epoch in epochs}
    for (role, protects), last in claims[epochs[-1]].items():
        delta = run.file.parties[run.parties(role)[0]].budget.delta
        if not math.isfinite(last.epsilon(delta)):
            continue
        points = tuple(
            EpsilonPoint(
                epoch=epoch, step=ends[epoch], claimed=claims[epoch][role, protects].epsilon(delta),
                lower=_lower(tested, role, epoch) if protects == INPUTS else None,
            )
            for epoch in epochs
        )  # fmt: skip
        yield EpsilonCurve(role=role, protects=protects, delta=delta, points=points)


def _claims(run: Run, epochs: int) -> dict[tuple[str, str], Forecast]:
    """What the ledgers will have charged after so many epochs, by role and by what is protected."""
    train = run.file.train.model_copy(update={"epochs": epochs})
    shorter = Run.of(run.file.model_copy(update={"train": train}), run.topology)
    return {(f.role, f.protects): f for f in forecasts(shorter) if f.training and f.to == EVERYONE}


def _lower(tested: DpFound | None, role: str, messages: int) -> float | None:
    """The largest bound that so many messages of a record of that role gave; a record sends one an epoch."""
    links = tested.links if tested is not None else ()
    known = [after.lower for link in links if link.role == role for after in link.over if after.messages == messages]
    return max(known, default=None)
