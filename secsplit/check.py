"""The linter for configurations: who will see what, what really acts on it, what is not covered, which claims are
false.

It reads the run's tables and builds its parties; no data moves. A refusal is a claim, or a combination, that would
mislead whoever relies on it; a gap is something left open that a reader must know. Neither list being empty makes a
run safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from secsplit.accounting import INPUTS, LABELS, epsilon_of, rdp_epsilon
from secsplit.claims import EVERYONE, ClaimSpec
from secsplit.defenses import SPECS
from secsplit.defenses.dp_sgd import DPSGDSpec
from secsplit.defenses.gaussian import GaussianSpec
from secsplit.errors import DataError, EnvironmentFault, RunError, nearest
from secsplit.forecast import Forecast, Link, forecasts, learning, links, owned
from secsplit.ledger import SOUND_OPTIONS, check_delta
from secsplit.message import Kind
from secsplit.run import Run

VACUOUS = 50.0  # an epsilon from which on the guarantee says next to nothing
NEAR = 0.02  # how close a claimed epsilon must come to a known mistake's to be called by its name


@dataclass(frozen=True)
class Remark:
    """Something to know. about: the edge, segment, claim or key it is about."""

    about: str
    text: str


@dataclass(frozen=True)
class Checkup:
    """All that is known of a run before it moves."""

    links: tuple[Link, ...]
    forecasts: tuple[Forecast, ...]
    gaps: tuple[Remark, ...]
    refusals: tuple[Remark, ...]


def check(run: Run, *, build: bool = True) -> Checkup:
    """Look at everything; build: also build the parties here, which needs their data."""
    refusals = [Remark(f"claims[{i}]", t) for i, claim in enumerate(run.file.claims) for t in refused(claim, run)]
    refusals += [*_budgets(run), *(_built(run) if build else ())]
    return Checkup(links(run.topology, run.file.defenses), forecasts(run), tuple(gaps(run)), tuple(refusals))


# claims


def refused(claim: ClaimSpec, run: Run) -> Iterator[str]:
    """Why a claim is refused, one reason each; none where it agrees with the forecast."""
    whose = _whose(claim, run)
    if isinstance(whose, RunError):
        yield str(whose)
        return
    for reason in claim.because:
        if (text := _bad_reason(reason, claim, run, whose)) is not None:
            yield f"claimed: {claim.text}. {text}"
    if set(claim.because) & {"audit", "dfil", "topology"}:
        return
    forecast = _against(claim, run, whose)
    if forecast is None:
        return  # nothing of it reaches that role
    yield from (f"claimed: {claim.text}. {text}" for text in _too_little(claim, forecast, run))


def _whose(claim: ClaimSpec, run: Run) -> str | RunError:
    holders = [role for role in run.topology.roles if claim.protects in owned(run.topology, role)]
    if claim.against not in (*run.topology.roles, EVERYONE):
        return RunError(f"against {claim.against!r}: {nearest(claim.against, [*run.topology.roles, EVERYONE])}")
    if claim.whose is None and len(holders) == 1:
        return holders[0]
    if claim.whose not in holders:
        return RunError(
            f"whose {claim.whose!r}: no role that holds {claim.protects}; {nearest(claim.whose or '', holders)}"
        )
    return claim.whose


def _against(claim: ClaimSpec, run: Run, whose: str) -> Forecast | None:
    same = [f for f in forecasts(run) if f.role == whose and f.protects == claim.protects and f.training]
    return next((f for f in same if f.to == claim.against), None)


def _bad_reason(reason: str, claim: ClaimSpec, run: Run, whose: str) -> str | None:
    """What is wrong with resting this claim on that; None where it may be right."""
    who = claim.against
    if reason == "audit":
        return "An audit gives a lower bound on epsilon, never an upper one: finding no violation proves nothing"
    if reason == "dfil":
        return "dFIL bounds the error of unbiased attackers; attackers that use what records look like do better"
    if reason == "subsampling":
        return (
            f"Amplification by subsampling needs a sampling pattern that the adversary cannot see, and {who} is sent "
            "one "
            "message for each example that takes part; compose the releases instead"
        )
    if reason == "topology":
        return _no_hiding_place(claim, run)
    if reason not in {spec.kind for spec in run.file.defenses}:
        return f"The run has no defense of kind {reason!r}"
    if reason == "dp-sgd" and claim.protects == INPUTS and _sends(run, whose, Kind.SMASHED, noised=False):
        return (
            "DP-SGD protects records against whoever later sees the weights; each example's smashed data crosses by "
            "itself, and needs noise of its own"
        )
    if reason == "label-dp" and claim.protects == INPUTS:
        return "Randomised response protects labels; inputs are exactly as exposed as without it"
    if SPECS[reason].guarantee in ("none", "detector") and reason != "frozen":
        return (
            f"{reason} ({SPECS[reason].about}) is no differential privacy: it has no sensitivity that it bounds, or a "
            "noise "
            "that depends on the other records; report what attacks still reach instead"
        )
    return None


def _no_hiding_place(claim: ClaimSpec, run: Run) -> str:
    if claim.protects == LABELS:
        return (
            "Keeping labels off the wire does not hide them: gradients of rows with equal labels point the same way, "
            "and "
            "clustering them recovers labels; noise the labels or the gradients"
        )
    return "A deeper or narrower cut makes reconstruction harder and bounds nothing; report what attacks still reach"


def _sends(run: Run, role: str, kind: Kind, *, noised: bool) -> bool:
    """Whether a role sends such messages with a finite, or without any, bound."""
    return any(
        link.crossing.sender == role and link.crossing.kind is kind and all(c.finite for c in link.charges) == noised
        for link in links(run.topology, run.file.defenses)
        if link.charges
    )


def _too_little(claim: ClaimSpec, forecast: Forecast, run: Run) -> Iterator[str]:
    """Where the forecast says more than the claim."""
    if claim.epsilon is None:
        yield _no_hiding_place(claim, run)
        return
    if math.isinf(forecast.mu):
        given = forecast.given_weights(claim.delta)
        alone = (
            f" ({given:.3g} would hold for the messages given the weights, which is no bound)"
            if given < math.inf
            else ""
        )
        options = "; or ".join(SOUND_OPTIONS)
        yield f"There is no finite epsilon: {'; '.join(forecast.why)}{alone}. Sound ways: {options}"
        return
    if claim.adjacency != forecast.adjacency and forecast.mu:
        yield f"The mechanisms are accounted for {forecast.adjacency} neighbours, the claim is for {claim.adjacency}"
        return
    epsilon = forecast.epsilon(claim.delta)
    if claim.epsilon < epsilon * (1 - 1e-6):
        yield f"{_mistake(claim, forecast, run)}The run will spend {epsilon:.4g}"


def _mistake(claim: ClaimSpec, forecast: Forecast, run: Run) -> str:
    """The name of the mistake that gives this epsilon, where it is a known one."""
    assert claim.epsilon is not None
    epochs, mu = run.file.train.epochs, forecast.mu
    one = mu / math.sqrt(epochs)
    known = {
        f"That is the epsilon of one epoch, and {epochs} epochs compose. ": epsilon_of(one, claim.delta),
        "That is for records set to zero (half the sensitivity), not replaced. ": epsilon_of(mu / 2, claim.delta),
        "That is an RDP number for noise multiplier sigma, so for records set to zero, not replaced. ": (
            rdp_epsilon([(one / 2, epochs)], claim.delta) if mu else 0.0
        ),
    }
    return next((name for name, e in known.items() if abs(claim.epsilon - e) <= NEAR * e), "")


# budgets and models


def _budgets(run: Run) -> Iterator[Remark]:
    """Parties whose own budget the run would overrun, and when."""
    for name, party in run.file.parties.items():
        for forecast in forecasts(run):
            limit = party.budget.limit(forecast.protects)
            if forecast.role != party.role or forecast.to != EVERYONE or limit is None:
                continue
            epsilon = forecast.epsilon(party.budget.delta)
            if epsilon > limit * (1 + 1e-9):
                records = "training" if forecast.training else "test"
                why = (
                    f"no finite epsilon: {'; '.join(forecast.why)}" if math.isinf(epsilon) else f"epsilon {epsilon:.4g}"
                )
                yield Remark(
                    f"parties.{name}.budget",
                    f"{name} allows epsilon {limit:g} for {forecast.protects}, and its {records} records would come "
                    f"to {why}; "
                    "it would stop in the middle: plan the noise with 'secsplit plan', or train for fewer epochs",
                )


def _built(run: Run) -> Iterator[Remark]:
    """What shows only when the parties are built: layers that mix examples, a delta of 1/n or more."""
    from secsplit.assemble import party_of

    for role in run.topology.roles:
        name = run.parties(role)[0]
        try:
            party = party_of(run, name)
            for cast in party.shards.values():
                for split in ("train", "test"):
                    if (n := cast.size(split)) is not None:
                        check_delta(run.file.parties[name].budget.delta, n)
        except (DataError, EnvironmentFault):
            continue  # this site does not hold that party's data
        except RunError as error:
            yield Remark(f"parties.{name}", str(error))


# gaps


def gaps(run: Run) -> Iterator[Remark]:
    """What a reader must know that nothing covers."""
    yield from _open_links(run)
    yield from _weights(run)
    yield from _weak(run)
    if run.file.train.evaluate_every:
        for link in links(run.topology, run.file.defenses, training=False):
            if link.crossing.kind is Kind.LABELS:
                yield Remark(
                    link.crossing.edge, f"evaluation sends true test labels to {link.crossing.receiver} in clear"
                )
    yield Remark("all links", "who takes part, when, and in which batch is visible to whoever is sent the messages")


def _open_links(run: Run) -> Iterator[Remark]:
    for link in links(run.topology, run.file.defenses):
        crossing = link.crossing
        for charge in link.charges:
            if charge.finite:
                continue
            on = f"{', '.join(link.covered)} acts on it and proves nothing" if link.covered else "nothing acts on it"
            if crossing.kind is Kind.LABELS and crossing.edge in run.topology.reconstructions:
                text = f"{crossing.sender} sends its inputs themselves to {crossing.receiver}, as what to reconstruct"
            elif crossing.kind is Kind.LABELS:
                text = f"{crossing.sender} sends every training label to {crossing.receiver} in clear"
            elif charge.protects == LABELS:
                text = f"gradients to {crossing.receiver} carry the labels of {crossing.sender}'s records; {on}"
            else:
                text = (
                    f"{crossing.kind} messages show {crossing.receiver} the inputs of {crossing.sender}'s records; {on}"
                )
            yield Remark(crossing.edge, text)


def _weights(run: Run) -> Iterator[Remark]:
    """Weights that leave, and weights that learn without DP-SGD behind noised messages."""
    method, topology, specs = run.method, run.topology, run.file.defenses
    private = {spec.segment for spec in specs if isinstance(spec, DPSGDSpec)}
    for role in topology.roles:
        learns = [segment for segment in learning(topology, specs, role) if segment not in private]
        if not owned(topology, role) or not learns:
            continue
        if role in run.cohort_roles and method.client_side != "unique":
            taker = "the next client" if method.client_side == "handed-over" else "whoever averages"
            yield Remark(", ".join(learns), f"weights that learnt from {role}'s records go to {taker} without DP-SGD")
        if any(
            c.finite and c.mu for link in links(topology, specs) if link.crossing.sender == role for c in link.charges
        ):
            yield Remark(
                ", ".join(learns),
                "it learns without DP-SGD, so later messages depend on all records: the noise bounds each message "
                "given "
                f"the weights, and there is no finite epsilon for the run. Sound ways: {'; or '.join(SOUND_OPTIONS)}",
            )


def _weak(run: Run) -> Iterator[Remark]:
    """Defenses that are there and prove less than a reader may think."""
    for spec in run.file.defenses:
        where = getattr(spec, "edge", getattr(spec, "segment", getattr(spec, "column", "")))
        if isinstance(spec, GaussianSpec) and spec.noise == "float":
            yield Remark(
                where, 'floating-point noise: the low bits may betray the message; noise = "grid" has no such hole'
            )
        if isinstance(spec, DPSGDSpec):
            yield Remark(where, "dp-sgd adds floating-point noise: its guarantee is that of real numbers")
        if isinstance(spec, GaussianSpec) and spec.adjacency == "zero-out":
            yield Remark(where, "accounted for records set to zero: half the sensitivity of replacing one")
        if spec.kind == "frozen":
            yield Remark(
                where, "sound only if its weights never saw these records: pretrained on public data, or random"
            )
        if spec.guarantee == "none" and spec.kind != "frozen":
            yield Remark(where, f"{spec.kind} is a measured control: it proves nothing; audit what attacks still reach")
    for forecast in forecasts(run):
        epsilon = forecast.epsilon(1e-5)
        if forecast.to == EVERYONE and VACUOUS <= epsilon < math.inf:
            yield Remark(
                f"{forecast.role}'s {forecast.protects}",
                f"epsilon {epsilon:.3g} at delta 1e-5 is vacuous as a guarantee: call it empirical protection, and "
                "audit it",
            )
