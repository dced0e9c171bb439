"""A policy: rules that a configuration must meet, each with an id, a severity and a remedy. Read from TOML.

A rule reads the end of the interval that is worse for the patient. Where the evidence for it is missing, it fails.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from audits.findings import Severity
from audits.leakage import METRICS, Goal
from secsplit.config import Strict, explain
from secsplit.errors import RunError, nearest

SCORE = "score"
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # `true` is no threshold of 1
RuleId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]


class Rule(Strict):
    """What every rule has."""

    id: RuleId
    severity: Severity = "high"
    remedy: str = ""

    @property
    def asks(self) -> str:
        """The rule in words."""
        raise NotImplementedError


class LeakageRule(Rule):
    """No attack of this goal may get further than `max` (or nearer than `min`, where a small figure is the leak).

    metric: a figure's name, or "score" (0 at chance, 1 at everything; every headline figure). attacks: those whose
    evidence must be there ("all": those that the run's [audit] table names); threats: adversaries, "*" for any.
    """

    check: Literal["leakage"] = "leakage"
    goal: Goal
    metric: str = SCORE
    max: Number | None = None
    min: Number | None = None
    attacks: tuple[str, ...] = ("all",)
    threats: tuple[str, ...] = ("*",)

    @model_validator(mode="after")
    def _bounded(self) -> LeakageRule:
        if self.metric != SCORE and self.metric not in METRICS:
            raise ValueError(f"no such metric; {nearest(self.metric, (*METRICS, SCORE))}")
        more = self.metric == SCORE or METRICS[self.metric].more
        wanted, other = ("max", self.min) if more else ("min", self.max)
        if getattr(self, wanted) is None or other is not None:
            raise ValueError(f"metric {self.metric!r} needs {wanted!r} and no other bound")
        return self

    @property
    def asks(self) -> str:
        bound = f"at most {self.max:g}" if self.max is not None else f"at least {self.min:g}"
        return f"{self.metric} of every attack on the {self.goal} is {bound}"


class EpsilonRule(Rule):
    """What the ledgers charged for inputs, or labels, stays within `max` at a delta of at most `delta`."""

    check: Literal["epsilon"] = "epsilon"
    protects: Literal["inputs", "labels"] = "inputs"
    max: Annotated[Number, Field(gt=0)]
    delta: Annotated[Number, Field(gt=0, lt=1)] = 1e-5

    @property
    def asks(self) -> str:
        return f"epsilon for {self.protects} is at most {self.max:g} at a delta of at most {self.delta:g}"


class UtilityRule(Rule):
    """The trained network is worth at least this: the lower end of the accuracy's interval, for every objective."""

    check: Literal["utility"] = "utility"
    min: Annotated[Number, Field(ge=0, le=1)]

    @property
    def asks(self) -> str:
        return f"accuracy on test records is at least {self.min:g}"


class EpsilonAuditRule(Rule):
    """Claims of noise were put to the test (`audit --dp`), and none is contradicted by what its mechanism does."""

    check: Literal["epsilon-audit"] = "epsilon-audit"

    @property
    def asks(self) -> str:
        return "every claimed epsilon was put to the test, and no lower bound exceeds its claim"


class ChannelRule(Rule):
    """Every message crossed an encrypted, mutually authenticated channel of a suite that is allowed.

    attacked: channels of those suites must have been attacked (`audit --channel`). Where they were, no changed byte may
    have been delivered, asked for or not.
    """

    check: Literal["channel"] = "channel"
    suites: tuple[str, ...] = ()  # empty: any that the project has
    attacked: bool = False

    @property
    def asks(self) -> str:
        by = f" by {' or '.join(self.suites)}" if self.suites else ""
        return f"every link was authenticated and encrypted{by}" + (", and stood every fault" if self.attacked else "")


class ControlRule(Rule):
    """Where no attack on a secret succeeds, one of them must have succeeded where nothing was defended."""

    check: Literal["control"] = "control"

    @property
    def asks(self) -> str:
        return "what no attack could infer here, one of them did infer in the undefended control"


class EvidenceRule(Rule):
    """Every attack and adversary of the run's [audit] table is there, and none failed. Added to every policy."""

    check: Literal["evidence"] = "evidence"
    id: RuleId = "evidence"
    severity: Severity = "critical"
    remedy: str = "Audit again; evidence that is missing is not good news."

    @property
    def asks(self) -> str:
        return "every planned attack ran, or could not apply"


AnyRule = Annotated[
    LeakageRule | EpsilonRule | EpsilonAuditRule | UtilityRule | ChannelRule | ControlRule | EvidenceRule,
    Field(discriminator="check"),
]


class Policy(Strict):
    """A named list of rules, checked in their order."""

    name: str
    about: str = ""
    rules: Annotated[tuple[AnyRule, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_differ(self) -> Policy:
        ids = [rule.id for rule in self.rules]
        twice = next((i for i in ids if ids.count(i) > 1), None)
        if twice:
            raise ValueError(f"two rules have the id {twice!r}; give each its own")
        return self

    @property
    def all(self) -> tuple[AnyRule, ...]:
        """The rules, and the one on evidence, which no policy can leave out."""
        if any(isinstance(rule, EvidenceRule) for rule in self.rules):
            return self.rules
        return (EvidenceRule(), *self.rules)


CHECKS = tuple(rule.model_fields["check"].default for rule in get_args(get_args(AnyRule)[0]))


def load(path: Path) -> Policy:
    """Read a policy. Raises RunError naming the file, the rule, the value and the nearest known name."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such policy file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise RunError(f"{path}: not a TOML policy: {error}") from None
    try:
        return Policy.model_validate(tables)
    except ValidationError as error:
        problems = error.errors()
        if len(problems) > 1:  # a rule that was refused is not counted, and that there are none is no news then
            problems = [p for p in problems if (p["type"], p["loc"]) != ("too_short", ("rules",))]
        raise RunError("\n".join(f"{path}: {_problem(p, tables)}" for p in problems)) from None


def _problem(problem: Any, tables: dict[str, Any]) -> str:
    where = problem["loc"]
    rule = tables["rules"][where[1]] if where[:1] == ("rules",) and len(where) > 1 else {}
    named = f"rule {rule.get('id', where[1])!r}: " if rule else ""
    if problem["type"] == "union_tag_invalid":
        return f"{named}check: no such check {rule.get('check')!r}; {nearest(str(rule.get('check')), CHECKS)}"
    if problem["type"] == "union_tag_not_found":
        return f"{named}check: missing; one of {', '.join(CHECKS)}"
    if problem["type"] == "extra_forbidden":
        kinds: dict[str, type[Rule]] = {k.model_fields["check"].default: k for k in get_args(get_args(AnyRule)[0])}
        fields = list(kinds.get(str(rule.get("check")), Rule).model_fields if rule else Policy.model_fields)
        return f"{named}{where[-1]}: unknown key; {nearest(str(where[-1]), fields)}"
    if problem["type"] == "value_error" and rule and "metric" in problem["msg"]:
        return f"{named}metric: got {rule.get('metric')!r}; {problem['msg'].removeprefix('Value error, ')}"
    return named + explain(Policy, problem, tables)
