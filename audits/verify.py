"""Is this what was sealed? For a third person, offline, with nothing but the folder (and fingerprints from elsewhere).

Checked are the chain of every log, what the parties told each other of their logs, the saved weights and metrics
against the logs, every line of every sealed file, and every signature. The first thing wrong in each is named with its
file and line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from pydantic import ValidationError
from safetensors import SafetensorError

from audits.finished import fingerprint_of
from audits.frozen import Frozen
from audits.grid import POINTS, PointResult
from audits.privacy import AUDIT, Audit
from audits.report.write import JSON
from audits.seal import MANIFEST, SEALS, Manifest, Seal, evidence_files, load, met, sealed
from audits.sweep import GRID, Grid
from channels import KeyFileError, PublicIdentity
from secsplit.auditlog import FILE as LOG
from secsplit.auditlog import Begun, Done, Entry, Epoch, Told, digest_of, entry, witnesses
from secsplit.books import LEDGER, SPENT
from secsplit.errors import RunError, SplitError
from secsplit.journal import START, anchor_of, link_of
from secsplit.ledger import BudgetSpec, Ledger
from secsplit.rundir import PartyDir, RunDir, read_weights


class Check(Frozen):
    """One thing that was checked. text: what is wrong, or what was found."""

    what: str
    ok: bool
    text: str


class Chained(Frozen):
    """A log's lines as they stand: what each says, and the link after it."""

    payloads: tuple[bytes, ...]
    links: tuple[str, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry(payload) for payload in self.payloads)


def verify(folder: Path, signers: Collection[str] = ()) -> tuple[Check, ...]:
    """Everything that can be checked of a run's folder, or a sweep's.

    signers: fingerprints that must have sealed it, from elsewhere.
    """
    checks = _sweep(folder) if (folder / GRID).exists() else _run(folder)
    return (*checks, *_sealed(folder), *_seals(folder, signers))


def _run(folder: Path) -> Iterator[Check]:
    run = RunDir.open(folder)
    logs: dict[str, Chained] = {}
    yield from _digest(run)
    for party in run.parties():
        yield from _log(run, party, logs)
        yield from _account(party)
    for name in logs:
        yield from _told(folder, name, logs)
    yield from _transcripts(run)


def _account(party: PartyDir) -> Iterator[Check]:
    """What a party says that it spent, against its ledger added up anew; its ledger may lie elsewhere."""
    told, kept = party.path / SPENT, party.path / LEDGER
    if not told.exists() or not kept.exists():
        return
    what = f"ledger of {party.name}"
    with TemporaryDirectory() as copy:
        try:
            says = json.loads(told.read_bytes())
            for file in (kept, anchor_of(kept)):
                if file.exists():
                    shutil.copyfile(file, Path(copy) / file.name)
            with Ledger(Path(copy) / LEDGER, party=party.name, run="", budget=BudgetSpec(**says["budget"])) as ledger:
                sums = [{**asdict(line), "statement": line.statement} for line in ledger.spent()]
                same = json.loads(json.dumps([asdict(ledger.head), sums])) == [says["head"], says["spent"]]
        except (SplitError, ValueError, KeyError, TypeError) as error:
            yield Check(what=what, ok=False, text=str(error).replace(copy, str(party.path)))
            return
    text = "it adds up to what is told" if same else f"{told}: not what {kept} adds up to"
    yield Check(what=what, ok=same, text=text)


def _transcripts(run: RunDir) -> Iterator[Check]:
    """Where transcripts lie here whole: whether they are those that were attacked. A sweep keeps their indices only."""
    parties = [party.name for party in run.parties() if any((party.path / "transcript").glob("*.safetensors"))]
    try:
        attacked = Audit.load(run.path).evidence
    except RunError:
        return  # not audited, or named elsewhere
    if parties and attacked:
        try:
            same = fingerprint_of(run.path, parties) == attacked
            text = "those that were attacked" if same else f"{run.path / AUDIT}: not the transcripts that were attacked"
        except (OSError, ValueError) as error:
            same, text = False, f"{run.path / 'parties'}: a transcript cannot be read, is it truncated? {error}"
        yield Check(what="transcripts", ok=same, text=text)


def _sweep(folder: Path) -> Iterator[Check]:
    """Every point of a sweep: one line each where all is well, else what is not."""
    try:
        grid = Grid.load(folder)
    except RunError as error:
        yield Check(what=GRID, ok=False, text=str(error))
        return
    yield Check(what=GRID, ok=True, text=f"{len(grid.points)} points")
    for point in grid.points:
        name = f"{point.setting}, seed {point.seed}"
        checks = list(_point(folder / POINTS, point))
        wrong = [check for check in checks if not check.ok]
        yield from (check.model_copy(update={"what": f"{name}: {check.what}"}) for check in wrong)
        if not wrong:
            yield Check(what=name, ok=True, text=f"{len(checks)} checks of its run, logs and audit agree")


def _point(shelf: Path, point: PointResult) -> Iterator[Check]:
    """One point: its run, and its audit as it was kept when it ended (the sweep adds what the control found)."""
    home = shelf / point.key
    try:
        yield from _run(home)
        audit = Audit.load(home)
    except RunError as error:
        yield Check(what="folder", ok=False, text=str(error))
        return
    kept, told = (audit.model_dump(exclude={"cells": {"__all__": {"control"}}}) for audit in (audit, point.audit))
    yield Check(
        what=AUDIT, ok=kept == told, text=f"{home / AUDIT}: {GRID} {'says' if kept == told else 'contradicts'} it"
    )
    digest = _agreed(RunDir(home))
    same = digest == point.audit.digest
    yield Check(what="digest", ok=same, text=f"{home / 'digest'}: {'' if same else 'not '}the run that was audited")


def _digest(run: RunDir) -> Iterator[Check]:
    try:
        run.run()
        yield Check(what="run.toml", ok=True, text="it fits its digest")
    except RunError as error:
        yield Check(what="run.toml", ok=False, text=str(error))


def _agreed(run: RunDir) -> str:
    """The digest that stands there; "" where none does, which is named by itself."""
    path = run.path / "digest"
    return path.read_bytes().decode(errors="replace").strip() if path.is_file() else ""


def _log(run: RunDir, party: PartyDir, logs: dict[str, Chained]) -> Iterator[Check]:
    """One party's log: its chain, what it says, and the weights and metrics beside it."""
    path = party.path / LOG
    what = f"log of {party.name}"
    if not path.exists():
        yield Check(what=what, ok=False, text=f"{path}: it is missing")
        return
    chained = _chain(path)
    if isinstance(chained, str):
        yield Check(what=what, ok=False, text=chained)
        return
    logs[party.name] = chained
    try:
        problem = _story(path, chained, party, _agreed(run)) or _whole(path, chained, run)
    except RunError as error:
        problem = str(error)
    yield Check(what=what, ok=problem is None, text=problem or f"{len(chained.payloads)} lines, unbroken")


def _chain(path: Path) -> Chained | str:
    """The lines of a log, read without changing it; or what is wrong with the first bad one."""
    text = path.read_bytes()
    lines = text.split(b"\n")
    if lines.pop() != b"":
        return f"{path}:{len(lines) + 1}: the last line is torn"
    payloads, links, previous = [], [], START
    for number, line in enumerate(lines, 1):
        told, _, payload = line.partition(b" ")
        previous = link_of(previous, payload)
        if told != previous.encode():
            return (
                f"{path}:{number}: does not fit the chain: this line, or the one before, was changed, added or removed"
            )
        try:
            entry(payload)
        except (msgspec.DecodeError, ValueError) as error:
            return f"{path}:{number}: not a line of an audit log: {error}"
        payloads.append(payload)
        links.append(previous)
    return Chained(payloads=tuple(payloads), links=tuple(links))


def _story(path: Path, chained: Chained, party: PartyDir, digest: str) -> str | None:
    """The first thing that the log says which cannot be so; None where there is none."""
    entries = chained.entries
    if not entries or not isinstance(entries[0], Begun):
        return f"{path}:1: a log begins with who writes it"
    if (entries[0].party, entries[0].run) != (party.name, digest):
        return f"{path}:1: written by {entries[0].party!r} in run {entries[0].run[:16]}, expected {party.name!r} here"
    if not isinstance(entries[-1], Done):
        return f"{path}:{len(entries)}: cut short: the last line does not say that the run ended"
    epochs = [line for line in enumerate(entries, 1) if isinstance(line[1], Epoch)]
    metrics = {line["epoch"]: line["metrics"] for line in party.metrics()}
    for expected, (number, told) in enumerate(epochs):
        assert isinstance(told, Epoch)
        if told.epoch != expected:
            return f"{path}:{number}: epoch {told.epoch} where epoch {expected} was expected"
        if metrics.get(told.epoch) != told.metrics:
            return f"{path}:{number}: its metrics of epoch {told.epoch} are not those of {party.path / 'metrics.jsonl'}"
        for segment, digest in told.weights.items():
            weights = dict(party.weights(segment)).get(f"epoch-{told.epoch:03d}")
            try:
                same = weights is None or digest_of(read_weights(weights)) == digest
            except (OSError, SafetensorError) as error:
                return f"{path}:{number}: {weights} cannot be read: {error}"
            if not same:
                return f"{path}:{number}: {weights} is not what was trained"
    return None


def _whole(path: Path, chained: Chained, folder: RunDir) -> str | None:
    """Which epoch, or word of a peer, the log lacks; None where it has all."""
    try:
        run = folder.run()
    except RunError:
        return None  # named by itself
    name, entries = path.parent.name, chained.entries
    if name not in run.file.parties:
        return f"{path}:1: no party of this run"
    epochs = sum(isinstance(line, Epoch) for line in entries)
    if epochs != run.file.train.epochs:
        return f"{path}:{len(entries)}: it tells of {epochs} epochs, and the run has {run.file.train.epochs}"
    heard = {(line.peer, line.epoch): number for number, line in enumerate(entries, 1) if isinstance(line, Told)}
    for number, line in enumerate(entries, 1):
        if isinstance(line, Epoch):
            for peer in witnesses(run, name):
                if (peer, line.epoch) not in heard:
                    return f"{path}:{number}: nothing that {peer} told of its log follows epoch {line.epoch}"
    return None


def _told(folder: Path, name: str, logs: dict[str, Chained]) -> Iterator[Check]:
    """What this party's peers told it, against their own logs."""
    heads = 0
    for number, told in enumerate(logs[name].entries, 1):
        if isinstance(told, Told) and told.peer in logs:
            links = logs[told.peer].links
            if told.lines > len(links) or links[told.lines - 1] != told.link:
                path = folder / "parties" / told.peer / LOG
                text = f"{path}:{min(told.lines, len(links))}: not what {told.peer} told {name} at epoch {told.epoch} "
                yield Check(what=f"heads told to {name}", ok=False, text=text + f"({name}'s log, line {number})")
                return
            heads += 1
    yield Check(what=f"heads told to {name}", ok=True, text=f"{heads} agree with the peers' own logs")


def _sealed(folder: Path) -> Iterator[Check]:
    """Every sealed file, line by line."""
    try:
        manifest = load(folder)
    except RunError as error:
        yield Check(what=MANIFEST, ok=False, text=str(error))
        return
    if JSON not in manifest.files:
        yield Check(what=JSON, ok=False, text=f"{folder / MANIFEST}: no report was sealed; write one, then seal again")
    for name in manifest.files:
        yield _file(folder, name, manifest)
    for name in evidence_files(folder):
        if name not in manifest.files:
            yield Check(what=name, ok=False, text=f"{folder / name}: it was added after the others were sealed")


def _file(folder: Path, name: str, manifest: Manifest) -> Check:
    path, was = folder / name, manifest.files[name]
    if ".." in Path(name).parts or Path(name).is_absolute():
        return Check(what=name, ok=False, text=f"{folder / MANIFEST}: {name!r} is no file of this folder")
    if not path.is_file():
        return Check(what=name, ok=False, text=f"{path}: it is missing")
    found = sealed(path)
    if found == was:
        return Check(what=name, ok=True, text=f"{len(was.lines)} lines as they were sealed")
    for number, (now, then) in enumerate(zip(found.lines, was.lines, strict=False), 1):
        if now != then:
            return Check(what=name, ok=False, text=f"{path}:{number}: not the line that was sealed")
    short = "cut short" if len(found.lines) < len(was.lines) else "longer than what was sealed"
    number = min(len(found.lines), len(was.lines)) + 1
    return Check(what=name, ok=False, text=f"{path}:{number}: {short}: {len(found.lines)} of {len(was.lines)} lines")


def _seals(folder: Path, signers: Collection[str]) -> Iterator[Check]:
    """Every signature over the manifest; and that those who were named are among them."""
    made: dict[str, str] = {}  # fingerprint -> name
    known = met(folder)
    try:
        statement = load(folder).statement()
    except RunError:
        statement = b""
    paths = sorted((folder / SEALS).glob("*.json")) if (folder / SEALS).is_dir() else []
    for path in paths if statement else []:
        what = f"seal of {path.stem}"
        try:
            seal = Seal.model_validate_json(path.read_bytes())
            public = PublicIdentity.loads(seal.identity).verify()
            public.verify_signature(bytes.fromhex(seal.signature), statement)
        except (ValidationError, ValueError, KeyError, KeyFileError) as error:
            yield Check(what=what, ok=False, text=f"{path}: {error}")
            continue
        if public.name != path.stem:
            yield Check(what=what, ok=False, text=f"{path}: signed by {public.name!r}")
            continue
        if known.get(public.name, public.fingerprint) != public.fingerprint:
            text = f"{path}: signed by {public.fingerprint}, and the channels of the run knew {known[public.name]}"
            yield Check(what=what, ok=False, text=text)
            continue
        made[public.fingerprint] = public.name
        yield Check(what=what, ok=True, text=f"signed by {public.fingerprint}")
    if not made:
        yield Check(what=SEALS, ok=False, text=f"{folder / SEALS}: nobody's signature is here")
    silent = [party.name for party in RunDir(folder).parties() if party.name not in made.values()]
    if made and silent:
        yield Check(what=SEALS, ok=True, text=f"not signed by {', '.join(silent)}")
    for missing in sorted(set(signers) - set(made)):
        yield Check(what=SEALS, ok=False, text=f"no valid seal of {missing}, who must have signed")
