"""The privacy audit of a finished run: attacks x threats. Every cell ran, or says why it did not apply or failed.

Nothing is left out in silence: an attack that could not run is a cell too, with its reason, and a gate that asks for it
fails. The truth is used to score, after the attack has answered.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from attacks.base import Attack, Guess, NotApplicable
from attacks.catalogue import attack as configured
from attacks.catalogue import catalogue
from audits import score_inputs
from audits.baselines import rivals
from audits.candidates import candidates_of
from audits.config import AuditSpec
from audits.evidence import Case, Rival
from audits.finished import Finished
from audits.frozen import Frozen
from audits.gallery import Gallery, gallery
from audits.leakage import Goal, Leakage
from audits.rehearsal import rehearsed
from audits.roc import Roc, roc
from audits.score import score
from audits.secret import secret
from audits.shelf import Shelf, code_of, key_of
from audits.statistics import holm
from audits.truth import Truth
from audits.views import empty_handed, view_of
from secsplit import __version__
from secsplit.errors import RunError, nearest
from secsplit.method import AGGREGATOR
from secsplit.rundir import write_atomically
from secsplit.schedule import derive
from secsplit.threat import Behaviour, Threat, View
from secsplit.topology import Topology

AUDIT = "audit.json"
SCHEMA_VERSION = "1.0"
NOISE = "the same attack on noise in place of messages"

Status = Literal["ran", "not applicable", "failed"]
Tell = Callable[[int, int, str], None]  # (cells done, cells in all, what comes next)


class ThreatFacts(Frozen):
    """An adversary as the report tells of it."""

    name: str
    who: tuple[str, ...]
    behaviour: Behaviour
    knows: tuple[str, ...]
    clues: int
    pairs: int
    aux: int


class ControlFacts(Frozen):
    """What the same attack did where nothing was defended: its best headline figure."""

    leaks: bool
    metric: str | None
    value: float | None
    score: float | None


class Cell(Frozen):
    """One attack by one threat.

    because: why it did not run; uses: what it used of what the threat knows; control: the positive control, the cell's
    own figures where the run is not defended.
    """

    attack: str
    paper: str
    goal: Goal
    threat: str
    status: Status
    because: str = ""
    uses: tuple[str, ...] = ()
    leakages: tuple[Leakage, ...] = ()
    facts: dict[str, float | int | str] = {}
    roc: Roc | None = None
    gallery: Gallery | None = None
    control: ControlFacts | None = None


class Audit(Frozen):
    """All cells of one run. digest: of the run that was audited."""

    schema_version: str = SCHEMA_VERSION
    secsplit: str = __version__
    digest: str
    seed: int
    threats: tuple[ThreatFacts, ...]
    cells: tuple[Cell, ...]
    hidden: bool  # reconstructions were made and are not shown, for they are of real patients
    evidence: str  # the fingerprint of the transcripts that were attacked

    @property
    def leakages(self) -> tuple[Leakage, ...]:
        return tuple(leak for cell in self.cells for leak in cell.leakages)

    def belongs_to(self, digest: str, evidence: str | None = None) -> None:
        """Raises RunError where it is the audit of another run, or (where asked) not of those transcripts."""
        if self.digest != digest:
            raise RunError(f"the audit is of run {self.digest[:16]}, expected {digest[:16]}; audit this run anew")
        if evidence is not None and self.evidence != evidence:
            raise RunError("the transcripts are no longer those that were attacked; audit this run anew")

    def save(self, folder: Path) -> Path:
        """Write it to the run's folder."""
        path = folder / AUDIT
        write_atomically(path, self.model_dump_json(indent=1).encode())
        return path

    @classmethod
    def load(cls, folder: Path) -> Audit:
        """Read it back. Raises RunError where it is missing or no audit of this version."""
        path = folder / AUDIT
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise RunError(f"{path}: not audited yet; run 'secsplit audit {folder}' first") from None
        except ValueError as error:
            raise RunError(f"{path}: not an audit of version {SCHEMA_VERSION}: {error}") from None
        if found.schema_version != SCHEMA_VERSION:
            raise RunError(f"{path}: an audit of version {found.schema_version}, expected {SCHEMA_VERSION}; audit anew")
        places = [(cell.attack, cell.threat) for cell in found.cells]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise RunError(f"{path}: {twice[0]} by {twice[1]} stands there twice; audit anew")
        return found


def audit(
    finished: Finished,
    spec: AuditSpec,
    tell: Tell = lambda done, of, what: None,
    *,
    attacks: Sequence[Attack] | None = None,
    shelf: Shelf | None = None,
) -> Audit:
    """Run every attack of every threat over what that threat saw; the attacks of `spec`, or those given.

    shelf: where finished cells are kept, and taken from when the audit goes on after a kill.
    Raises RunError where there is nothing to run.
    """
    attacks = chosen(spec) if attacks is None else attacks
    threats = spec.adversaries(
        finished.run.topology,
        active=any(each.needs.active for each in attacks),
        averaged=bool(finished.run.parties(AGGREGATOR)),
    )
    auditor = _Auditor(finished, spec, shelf)
    return audit_of(
        auditor, threats, attacks, tell, digest=finished.run.digest().hex(), evidence=finished.fingerprint,
        real_patients=finished.truth.real_patients,
    )  # fmt: skip


def audit_of(
    auditor: Auditor,
    threats: Sequence[Threat],
    attacks: Sequence[Attack],
    tell: Tell,
    *,
    digest: str,
    evidence: str,
    real_patients: bool = True,
) -> Audit:
    """Every combination as a cell, corrected for their number. Raises RunError where there is none."""
    plan = [(threat, each) for threat in threats for each in attacks]
    if not plan:
        raise RunError("audit: no attack and threat to run, and an empty audit says nothing; see audit.attacks")
    cells, spec = [], auditor.spec
    for done, (threat, each) in enumerate(plan):
        tell(done, len(plan), f"{each.name} by {threat.name}")
        twin = None if each.needs.active else passive_twin(threat, threats)
        cells.append(auditor.timed(each, threat).cell if twin is None else left_to(each, threat, twin))
    hidden = real_patients and not spec.reveal
    return Audit(
        digest=digest, seed=spec.seed, threats=tuple(_facts(t) for t in threats), cells=corrected(cells),
        hidden=hidden and any(c.goal == "input" and c.status == "ran" for c in cells), evidence=evidence,
    )  # fmt: skip


def corrected(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with Holm's correction over all headline figures: many attacks are many chances of a false alarm."""
    places = [
        (i, j)
        for i, cell in enumerate(cells)
        for j, leak in enumerate(cell.leakages)
        if leak.headline and leak.p is not None
    ]
    adjusted = dict(zip(places, holm([cells[i].leakages[j].p or 0.0 for i, j in places]), strict=True))
    return tuple(
        cell.model_copy(
            update={
                "leakages": tuple(
                    replace(leak, p_adjusted=adjusted.get((i, j))) for j, leak in enumerate(cell.leakages)
                )
            }
        )
        for i, cell in enumerate(cells)
    )


def chosen(spec: AuditSpec) -> tuple[Attack, ...]:
    """The attacks that the spec names, configured. Raises RunError for an unknown name or option."""
    known = catalogue()
    for name in (*spec.skip, *spec.options):
        if name not in known:
            raise RunError(f"audit: there is no attack {name!r}; {nearest(name, known)}")
    names = known if "all" in spec.attacks else dict.fromkeys(spec.attacks)
    return tuple(configured(name, **spec.options.get(name, {})) for name in names if name not in spec.skip)


def passive_twin(threat: Threat, among: Sequence[Threat]) -> Threat | None:
    """Of a malicious threat, the curious one that sees and knows the same: a passive attack need not be run twice."""
    if threat.behaviour != "malicious":
        return None
    alike = (t for t in among if replace(t, name=threat.name, behaviour="malicious") == threat)
    return next((t for t in alike if t.behaviour == "curious"), None)


def left_to(each: Attack, threat: Threat, twin: Threat) -> Cell:
    """The cell of a passive attack whose figure stands under another threat."""
    because = f"it takes nobody's place; what it finds stands under {twin.name!r}"
    return Cell(attack=each.name, paper=each.paper, goal=each.goal, threat=threat.name, status="not applicable",
                because=because)  # fmt: skip


class Timed(Frozen):
    """A cell and what it took, which is no evidence and is kept apart from it."""

    cell: Cell
    cpu_seconds: float


class Auditor(ABC):
    """Runs and scores single cells over the evidence that a subclass has: a finished run, or somebody's tensors."""

    spec: AuditSpec
    topology: Topology
    epochs: Mapping[int, int] | None  # turn -> epoch

    @abstractmethod
    def view(self, threat: Threat) -> View:
        """What that adversary saw."""

    @abstractmethod
    def truth(self, view: View) -> Truth:
        """The truth that guesses from that view are held against."""

    @abstractmethod
    def outcome(self, each: Attack, threat: Threat) -> dict[str, object]:
        """What came of one attack. Raises NotApplicable."""

    def timed(self, each: Attack, threat: Threat) -> Timed:
        """The cell and what it took; here always computed."""
        return self.run(each, threat)

    def run(self, each: Attack, threat: Threat) -> Timed:
        began = time.process_time()
        cell = self.cell(each, threat)
        return Timed(cell=cell, cpu_seconds=time.process_time() - began)

    def coins(self, each: Attack, threat: Threat, what: str = "attack") -> torch.Generator:
        """Randomness of a cell's own: neither the order of the cells nor what else runs changes it."""
        return torch.Generator().manual_seed(derive(self.spec.seed, what, each.name, threat.name))

    def cell(self, each: Attack, threat: Threat) -> Cell:
        """Run and score one attack; what goes wrong becomes the cell's reason."""
        cell = Cell(
            attack=each.name, paper=each.paper, goal=each.goal, threat=threat.name, status="not applicable",
            uses=tuple(sorted(each.needs.knows)),
        )  # fmt: skip
        if reason := each.why_not(self.topology, threat):
            return cell.model_copy(update={"because": reason})
        try:
            update = self.outcome(each, threat)
        except NotApplicable as reason:
            return cell.model_copy(update={"because": str(reason)})
        except Exception as error:
            update = {"status": "failed", "because": f"{type(error).__name__}: {error}"}
        return cell.model_copy(update=update)

    def found(self, each: Attack, threat: Threat, view: View) -> dict[str, object]:
        truth = self.truth(view)
        guess = secret(view, each.infer(view, coins=self.coins(each, threat)))
        case = Case(truth, self.coins(each, threat, "score"), each.name, threat.name, (), self.epochs)
        if guess.goal == "input":
            guess = score_inputs.evaluated(case, guess)
        case = replace(case, rivals=(*rivals(view, guess, truth), *self.control(each, threat, view, guess)))
        leakages = score(case, guess)
        if not leakages:
            return {
                "status": "failed",
                "because": "it guessed about no row that can be scored",
                "facts": dict(guess.facts),
            }
        show = each.goal == "input" and (self.spec.reveal or not truth.real_patients)
        picture = gallery(case, guess, view, count=self.spec.gallery) if show else None
        return {
            "status": "ran",
            "leakages": leakages,
            "facts": dict(guess.facts),
            "roc": roc(case, guess),
            "gallery": picture,
        }

    def control(self, each: Attack, threat: Threat, view: View, guess: Guess) -> Iterable[Rival]:
        """The attack empty-handed, about the same rows; an attack that breaks on noise learnt nothing from it."""
        if not self.spec.control or not (each.needs.messages or each.needs.any_of or view.wire):
            return ()  # what reads no message cannot tell messages from noise
        try:
            blind = each.infer(empty_handed(view, seed=self.spec.seed), coins=self.coins(each, threat))
        except (NotApplicable, ValueError, ArithmeticError, RuntimeError):
            return ()
        return (Rival(NOISE, secret(view, blind)),)


class _Auditor(Auditor):
    """Over a finished run; keeps the views, which cells of one threat share."""

    def __init__(self, finished: Finished, spec: AuditSpec, shelf: Shelf | None) -> None:
        self.finished, self.spec, self.shelf = finished, spec, shelf
        self.topology, self.epochs = finished.run.topology, finished.epochs
        self.views: dict[str, View] = {}

    def timed(self, each: Attack, threat: Threat) -> Timed:
        """The cell, taken from the shelf where it is already there; one that failed is tried again."""
        if self.shelf is None:
            return self.run(each, threat)
        key = self.key(each, threat)
        kept = self.shelf.get(key, Timed)
        if kept is None:
            kept = self.run(each, threat)
            if kept.cell.status != "failed":
                self.shelf.put(key, kept)
        return kept

    def key(self, each: Attack, threat: Threat) -> str:
        """Everything that a cell's outcome follows from."""
        options = {name: getattr(each, name) for name in getattr(each, "__dataclass_fields__", {})}
        spec = self.spec.model_dump(mode="json", include={"seed", "control", "gallery", "reveal"})
        return key_of(self.finished.run.digest().hex(), self.finished.fingerprint, each.name,
                      type(each).__qualname__, code_of(type(each)), options, _facts(threat), spec)  # fmt: skip

    def view(self, threat: Threat) -> View:
        if threat.name not in self.views:
            self.views[threat.name] = view_of(self.finished, threat, seed=self.spec.seed)
        return self.views[threat.name]

    def truth(self, view: View) -> Truth:
        """The truth, with that of the candidates where the view has some."""
        if view.candidates is None:
            return self.finished.truth
        drawn = candidates_of(self.finished, self.spec.seed)
        return replace(self.finished.truth, candidates=(drawn.cast, drawn.position))

    def outcome(self, each: Attack, threat: Threat) -> dict[str, object]:
        if not each.needs.active:
            return self.found(each, threat, self.view(threat))
        coins = self.coins(each, threat, "corrupt")
        with rehearsed(self.finished, each, threat, self.view(threat), coins=coins) as other:
            return self.found(each, threat, view_of(other, threat, seed=self.spec.seed))


def _facts(threat: Threat) -> ThreatFacts:
    return ThreatFacts(
        name=threat.name, who=threat.parties or threat.who, behaviour=threat.behaviour,
        knows=tuple(sorted(threat.knows)), clues=threat.clues, pairs=threat.pairs, aux=threat.aux,
    )  # fmt: skip
