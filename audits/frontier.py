"""What a sweep says about its settings: leakage and utility over seeds, which of them nothing beats, and which to take.

A setting is as good as its worst attack: each seed's figure is the worst score over attacks, and the pessimistic end
over seeds is the worse of Student's interval and the worst seed's own. Seeds that judge choose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path

from audits.frozen import Frozen
from audits.gate import Evidence, Outcome, judge, passed, pessimistic_score
from audits.grid import POINTS, PointResult, spelled
from audits.leakage import Leakage
from audits.policy import ControlRule, Policy, UtilityRule
from audits.statistics import over_seeds
from audits.sweep import Grid
from secsplit.errors import RunError, nearest
from secsplit.rundir import RunDir

GOALS = ("label", "input", "attribute", "membership")


class OverSeeds(Frozen):
    """A figure from 0 to 1 over seeds. low, high: Student's 95% interval within that, None of a single seed;
    pessimistic: the worse end."""

    mean: float
    low: float | None
    high: float | None
    pessimistic: float
    n: int
    values: tuple[float, ...]


class SettingLeakage(Frozen):
    """The worst score over attacks on one goal. attacks: which was worst, by seed."""

    goal: str
    score: OverSeeds
    attacks: tuple[str, ...]


class Setting(Frozen):
    """One setting of the sweep. best: no other setting leaks less and is worth more."""

    name: str
    configuration: str
    at: dict[str, str]
    leakages: tuple[SettingLeakage, ...]
    accuracy: OverSeeds | None
    best: bool = False

    def worst(self) -> float | None:
        """The largest mean score over the goals; None where nothing was measured."""
        return max((leak.score.mean for leak in self.leakages), default=None)


class Advice(Frozen):
    """The setting to take under a policy, why, and what was not measured. chosen: None where no setting meets it."""

    policy: str
    settings: tuple[Setting, ...]
    meets: tuple[str, ...]
    chosen: str | None
    because: str
    held_out: tuple[Outcome, ...]  # of the chosen setting, on the seeds that chose nothing
    not_measured: tuple[str, ...]


def settings(grid: Grid) -> tuple[Setting, ...]:
    """Every setting over the seeds that choose, those that nothing beats marked."""
    made = [_setting(grid.of(name, held_out=False)) for name in grid.settings]
    return tuple(setting.model_copy(update={"best": _unbeaten(setting, made)}) for setting in made)


def _setting(points: Sequence[PointResult]) -> Setting:
    leakages = []
    for goal in GOALS:
        worst = [found for point in points if (found := _worst(point, goal)) is not None]
        if len(worst) == len(points):
            leakages.append(
                SettingLeakage(
                    goal=goal,
                    score=seeds([leak.score or 0.0 for leak in worst], [pessimistic_score(leak) for leak in worst]),
                    attacks=tuple(f"{leak.attack} by {leak.threat}" for leak in worst),
                )
            )
    accuracies = [[u.accuracy for u in point.utility if u.accuracy is not None] for point in points]
    lows = [[u.low for u in point.utility if u.low is not None] for point in points]
    accuracy = None
    if all(accuracies):
        accuracy = seeds([min(a) for a in accuracies], [min(low) for low in lows if low], more=False)
    first = points[0]
    return Setting(
        name=first.setting,
        configuration=first.configuration,
        at={axis: spelled(value) for axis, value in first.at.items()},
        leakages=tuple(leakages),
        accuracy=accuracy,
    )


def _worst(point: PointResult, goal: str) -> Leakage | None:
    leaks = [leak for leak in point.audit.leakages if leak.goal == goal and leak.headline and leak.score is not None]
    return max(leaks, key=lambda leak: leak.score or 0.0, default=None)


def seeds(values: Sequence[float], ends: Sequence[float | None], *, more: bool = True) -> OverSeeds:
    """Values and their own pessimistic ends, over seeds. more: whether a larger value is the worse."""
    within = over_seeds(values)
    low, high = (None if isnan(end) else min(1.0, max(0.0, end)) for end in (within.low, within.high))
    known = [end for end in (*ends, high if more else low) if end is not None]
    return OverSeeds(
        mean=sum(values) / len(values), low=low, high=high, n=len(values), values=tuple(values),
        pessimistic=(max if more else min)([*known, *values]),
    )  # fmt: skip


def _unbeaten(setting: Setting, others: Sequence[Setting]) -> bool:
    """Whether no other setting is at least as good in leakage and in accuracy, and better in one."""
    mine = _place(setting)
    if mine is None:
        return False
    places = [place for other in others if other is not setting and (place := _place(other)) is not None]
    return not any(p[0] <= mine[0] and p[1] >= mine[1] and p != mine for p in places)


def _place(setting: Setting) -> tuple[float, float] | None:
    worst = setting.worst()
    return None if worst is None or setting.accuracy is None else (worst, setting.accuracy.mean)


def evidence_of(grid_folder: Path, point: PointResult) -> Evidence:
    """What a gate may read of one point."""
    folder = RunDir.open(grid_folder / POINTS / point.key)
    return Evidence(folder.run(), point.audit, folder)


def judge_setting(
    policy: Policy, grid: Grid, folder: Path, setting: str, *, held_out: bool | None
) -> tuple[Outcome, ...]:
    """Each rule over all seeds asked for: it passes where it passes for every one of them.

    Raises RunError where there is no such setting, or no seed of that kind.
    """
    if setting not in grid.settings:
        raise RunError(f"{folder}: no setting {setting!r}; {nearest(setting, grid.settings)}")
    points = grid.of(setting, held_out=held_out)
    if not points:
        raise RunError(f"{folder}: setting {setting!r} has no held-out seed; give grid.held_out in the run file")
    by_seed = [(point.seed, judge(policy, evidence_of(folder, point))) for point in points]
    return tuple(_together([(seed, outcomes[i]) for seed, outcomes in by_seed]) for i in range(len(by_seed[0][1])))


def _together(outcomes: Sequence[tuple[int, Outcome]]) -> Outcome:
    failing = [(seed, outcome) for seed, outcome in outcomes if outcome.state == "fail"]
    told = failing or outcomes
    return outcomes[0][1].model_copy(
        update={
            "state": "fail" if failing else "pass",
            "text": "; ".join(f"seed {seed}: {outcome.text}" for seed, outcome in told),
        }
    )


def advise(grid: Grid, policy: Policy, folder: Path) -> Advice:
    """Of the settings that meet the policy on every seed that chooses, the one worth most, judged on the others."""
    known = settings(grid)
    meets = [setting for setting in known if passed(judge_setting(policy, grid, folder, setting.name, held_out=False))]
    best = max(meets, key=lambda s: s.accuracy.pessimistic if s.accuracy else 0.0, default=None)
    held_out: tuple[Outcome, ...] = ()
    if best is None:
        because = "no setting meets every rule on every seed; sweep more noise, a deeper cut or another configuration"
    else:
        assert best.accuracy is not None or not meets
        worth = f"accuracy {best.accuracy.mean:.3g}" if best.accuracy else "an accuracy that was not measured"
        because = (
            f"{'the only setting that meets' if len(meets) == 1 else f'of {len(meets)} settings that meet'} every rule"
            f"{'' if len(meets) == 1 else ', it is worth most'}: {worth}, mean of {len(grid.seeds)} seeds"
        )
        if grid.held_out:
            held_out = judge_setting(policy, grid, folder, best.name, held_out=True)
            because += "; it meets them on held-out seeds too" if passed(held_out) else "; on held-out seeds it FAILS"
    return Advice(
        policy=policy.name, settings=known, meets=tuple(s.name for s in meets), chosen=best.name if best else None,
        because=because, held_out=held_out, not_measured=_not_measured(grid, policy),
    )  # fmt: skip


def _not_measured(grid: Grid, policy: Policy) -> tuple[str, ...]:
    """What a reader could think that this sweep says, and it does not."""
    audits = [point.audit for point in grid.points]
    ran = {cell.attack for audit in audits for cell in audit.cells if cell.status == "ran"}
    planned = {cell.attack for audit in audits for cell in audit.cells}
    failed = {cell.attack for audit in audits for cell in audit.cells if cell.status == "failed"}
    goals = {cell.goal for audit in audits for cell in audit.cells if cell.status == "ran"}
    lines = [f"{name}: it applied nowhere" for name in sorted(planned - ran - failed)]
    lines += [f"{name}: it failed, so its figures are missing" for name in sorted(failed)]
    lines += [f"{name}: it found nothing even in the control, so it was too weak here" for name in _weak(grid)]
    lines += [f"no attack on {what}" for goal, what in _WHAT.items() if goal not in goals]
    lines += [f"{what} in {name!r} on every seed, so its place tells nothing of them" for name, what in _partly(grid)]
    if not any(threat.behaviour == "malicious" for audit in audits for threat in audit.threats):
        lines.append("adversaries that break the protocol")
    if not any(len(threat.who) > 1 for audit in audits for threat in audit.threats):
        lines.append("adversaries that collude")
    if len(grid.seeds) < 3:
        lines.append(f"how figures vary: {len(grid.seeds)} seed(s) choose, and three are the least to tell")
    if not grid.held_out:
        lines.append("whether the choice holds on seeds that chose nothing: there are no held-out seeds")
    if not any(isinstance(rule, UtilityRule) for rule in policy.rules):
        lines.append("whether the network is useful enough: the policy has no rule on utility")
    if not any(isinstance(rule, ControlRule) for rule in policy.rules):
        lines.append("whether the attacks could find anything: the policy has no rule on a control")
    return tuple(lines)


def _partly(grid: Grid) -> Iterator[tuple[str, str]]:
    """(setting, what is inferred) wherever some of the seeds that choose have a figure and others none."""
    for name in grid.settings:
        points = grid.of(name, held_out=False)
        for goal, what in _WHAT.items():
            if 0 < sum(_worst(point, goal) is not None for point in points) < len(points):
                yield name, what


def _weak(grid: Grid) -> list[str]:
    """Attacks that ran in the control configuration and never did better than chance."""
    able: dict[str, bool] = {}
    for point in grid.points:
        for cell in point.audit.cells if point.configuration == grid.control else ():
            if cell.status == "ran":
                leaks = any(leak.leaks for leak in cell.leakages if leak.headline)
                able[cell.attack] = able.get(cell.attack, False) or leaks
    return sorted(name for name, found in able.items() if not found)


_WHAT = {
    "label": "labels",
    "input": "records",
    "attribute": "attributes",
    "membership": "membership",
    "traffic": "the sizes and times of messages",
}
