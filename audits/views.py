"""What one adversary saw of a finished run: a `View`, and nothing beyond it. And the same view with noise for messages.

The noise view is the empty-handed control: all that the adversary knows beforehand, and messages of the right shape and
scale that say nothing. An attack that does as well on it learnt nothing from the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from itertools import count

import torch
from torch import Tensor, nn

from audits.candidates import candidates_of
from audits.finished import Finished
from audits.score_inputs import EVALUATED, chosen
from audits.wiretap import passages
from secsplit.assemble import shard_of
from secsplit.defenses import Noise, Outgoing
from secsplit.defenses import build as defend
from secsplit.errors import RunError, nearest
from secsplit.message import Kind, Stamp
from secsplit.run import Run
from secsplit.schedule import derive
from secsplit.threat import Known, Knows, Snapshot, Threat, View
from secsplit.transcript import Record, Transcript


def view_of(finished: Finished, threat: Threat, *, seed: int = 0) -> View:
    """What `threat` saw and was granted. Clues and pairs are drawn by `seed`, the same for every attack.

    Raises RunError for a role or party that the run does not have, or whose transcript is not here.
    """
    run, truth = finished.run, finished.truth
    names = coalition(run, threat)
    for name in names:
        if name not in finished.transcripts:
            raise RunError(f"threat {threat.name!r}: the transcript of {name!r} is not here; was record = 'off'?")
    theirs = [segment.name for segment in run.topology.order if segment.role not in threat.who]
    grants = _Grants(finished, threat, seed)
    both = {Knows.AUX, Knows.CANDIDATES} <= threat.knows
    asked = candidates_of(finished, seed) if Knows.CANDIDATES in threat.knows else None
    return View(
        topology=run.topology,
        roles=threat.who,
        transcripts={name: finished.transcripts[name] for name in names},
        models=dict(_models(finished, threat)),
        own={cast: _own(finished, threat, cast) for cast in range(len(run.casts))},
        classes=truth.classes,
        order=finished.order,
        shapes={name: column.shape[1:] for name, column in truth.inputs[0].items()},
        asked={cast: chosen(finished.schedule.sizes[cast]["train"], EVALUATED) for cast in _strange(run, threat)},
        aux=grants.aux(but=asked.outsiders if both and asked else None) if Knows.AUX in threat.knows else None,
        clues=grants.clues() if Knows.CLUES in threat.knows else None,
        pairs=grants.pairs() if Knows.PAIRS in threat.knows else None,
        prior=grants.prior() if Knows.PRIOR in threat.knows else {},
        query={name: grants.query(name) for name in theirs} if Knows.QUERY in threat.knows else {},
        architecture={name: grants.blank(name) for name in theirs} if Knows.ARCHITECTURE in threat.knows else {},
        weights={name: grants.trained(name) for name in theirs} if Knows.WEIGHTS in threat.knows else {},
        history={name: grants.history(name) for name in theirs} if Knows.WEIGHTS in threat.knows else {},
        candidates=asked.records if asked else None,
        wire=passages(finished) if threat.behaviour == "wiretap" else (),
    )


def coalition(run: Run, threat: Threat) -> tuple[str, ...]:
    """The parties that are the adversary. Raises RunError for a role or party that the run does not have."""
    roles = dict.fromkeys(spec.role for spec in run.file.parties.values())
    for role in threat.who:
        if role not in roles:
            raise RunError(f"threat {threat.name!r}: no role {role!r} here; {nearest(role, roles)}")
    names = tuple(party for role in threat.who for party in run.parties(role))
    for party in threat.parties:
        if party not in names:
            hint = nearest(party, names)
            raise RunError(f"threat {threat.name!r}: no party {party!r} of {' + '.join(threat.who)} here; {hint}")
    alone = {role for role in threat.who if len(run.parties(role)) == 1}
    return tuple(
        name for name in names if not threat.parties or name in threat.parties or run.file.parties[name].role in alone
    )


def _strange(run: Run, threat: Threat) -> tuple[int, ...]:
    """The casts that an adversary is asked about: where it is one client of several, those it has no part in."""
    mine = {name for name in coalition(run, threat) if run.file.parties[name].role in run.cohort_roles}
    others = tuple(i for i, cast in enumerate(run.casts) if not mine & set(cast.values()))
    return others if threat.parties else tuple(range(len(run.casts)))


def _models(finished: Finished, threat: Threat) -> Iterator[tuple[str, tuple[Snapshot, ...]]]:
    run, names = finished.run, coalition(finished.run, threat)
    for segment in run.topology.order:
        if segment.role not in threat.who:
            continue
        holder = finished.holder(segment.role)
        mine = [name for name in names if name in run.parties(segment.role)]
        yield segment.name, finished.snapshots(holder if holder in mine else mine[-1], segment.name)
        if run.method.client_side == "unique" and segment.role in run.cohort_roles:
            for cast in range(len(run.casts)):
                if (party := run.casts[cast][segment.role]) in names:
                    yield f"{segment.name}@{cast}", finished.snapshots(party, segment.name)


def _own(finished: Finished, threat: Threat, cast: int) -> Known:
    """The records that the coalition itself holds, as its own defenses left them or as they are."""
    run, names = finished.run, coalition(finished.run, threat)
    inputs: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for role in threat.who:
        if run.casts[cast].get(role) not in names:
            continue
        shard = shard_of(run, run.casts[cast][role], cast)
        inputs |= shard.inputs.get("train", {})
        labels |= shard.labels.get("train", {})
    n = next((len(t) for t in [*inputs.values(), *labels.values()]), 0)
    return Known(inputs, labels, torch.full((n,), cast), torch.arange(n))


class _Grants:
    """What a threat knows beyond its own: drawn once from the truth, by a seed of its own."""

    def __init__(self, finished: Finished, threat: Threat, seed: int) -> None:
        self.finished, self.threat, self.truth = finished, threat, finished.truth
        self.seed = seed

    def coins(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, "threat", what))

    def aux(self, *, but: Tensor | None = None) -> Known:
        """Records of the same domain, `but` not those outsiders whose membership it is asked about."""
        outside, most = self.finished.outside, self.threat.aux
        n = next((len(t) for t in outside.inputs.values()), 0)
        rows = torch.randperm(n, generator=self.coins("aux"))
        rows = (rows if but is None else rows[~torch.isin(rows, but)])[: most or n]
        inputs = {name: column[rows] for name, column in outside.inputs.items()}
        return Known(inputs, {name: column[rows] for name, column in outside.labels.items()})

    def clues(self) -> Known:
        """The true labels of `threat.clues` private records of each class, over all casts together."""
        column, cast, position = self._private_labels()
        y, coins = column[next(iter(column))], self.coins("clues")
        picked = []
        for name, values in column.items():
            classes = values.unique() if self.truth.classes.get(name, 0) else [None]
            for c in classes:
                rows = (values == c if c is not None else torch.ones_like(y, dtype=torch.bool)).nonzero().flatten()
                rows = rows[: 0 if c is not None and int(c) < 0 else None]
                picked.append(rows[torch.randperm(len(rows), generator=coins)[: self.threat.clues]])
        rows = torch.cat(picked).unique()
        return Known({}, {name: values[rows] for name, values in column.items()}, cast[rows], position[rows])

    def pairs(self) -> Known:
        """`threat.pairs` private records with their inputs."""
        casts = self.truth.casts
        columns = {name: torch.cat([self.truth.inputs[c][name] for c in casts]) for name in self.truth.inputs[0]}
        cast, position = self._places()
        rows = torch.randperm(len(cast), generator=self.coins("pairs"))[: self.threat.pairs]
        return Known({name: values[rows] for name, values in columns.items()}, {}, cast[rows], position[rows])

    def prior(self) -> Mapping[str, Tensor]:
        column, _, _ = self._private_labels()
        found = {}
        for name, values in column.items():
            if (classes := self.truth.classes.get(name, 0)) and values.ndim == 1:
                counts = values[values >= 0].bincount(minlength=classes).double()
                found[name] = (counts / counts.sum()).float()
        return found

    def query(self, segment: str) -> Callable[[Tensor], Tensor]:
        """What the victim would send for an input: its last weights, then its own defenses with noise of their own."""
        module = self.trained(segment)().eval().requires_grad_(False)
        run, asked = self.finished.run, count()
        key = sha256(f"{derive(self.seed, 'query', segment)}".encode()).digest()
        role = run.topology[segment].role
        defenses = defend(run.file.defenses, run.topology, role, Noise(key), dict(self.truth.classes))
        edge = next((e for e in run.topology.users(segment) if e.crosses), None)

        def answer(x: Tensor) -> Tensor:
            with torch.no_grad():
                made = module(x)
                first = torch.as_tensor(made[0] if isinstance(made, tuple) else made)
                if edge is None:
                    return first
                number = next(asked)
                rows = torch.arange(len(first)) + (number << 32)
                stamp = Stamp(step=(1 << 40) + number)
                to = self.finished.holder(edge.user.role)
                return defenses.outgoing(Outgoing(Kind.SMASHED, edge.name, stamp, first, None, rows, to)).detach()

        return answer

    def blank(self, segment: str) -> Callable[[], nn.Module]:
        """The architecture with weights of its own: those that the run began with are not given away."""
        module, seed = self.finished.modules[segment], derive(self.seed, "blank", segment)

        def make() -> nn.Module:
            fresh = deepcopy(module)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                for layer in fresh.modules():
                    if callable(reset := getattr(layer, "reset_parameters", None)):
                        reset()
            return fresh

        return make

    def trained(self, segment: str) -> Callable[[], nn.Module]:
        return self.history(segment)[-1].make

    def history(self, segment: str) -> tuple[Snapshot, ...]:
        """The segment over time, as whoever took the last turn had it."""
        role = self.finished.run.topology[segment].role
        snapshots = self.finished.snapshots(self.finished.holder(role), segment)
        if not snapshots:
            raise RunError(f"threat {self.threat.name!r}: no weights of segment {segment!r} lie here")
        return snapshots

    def _private_labels(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        casts = self.truth.casts
        columns = {name: torch.cat([self.truth.labels[c][name] for c in casts]) for name in self.truth.labels[0]}
        return columns, *self._places()

    def _places(self) -> tuple[Tensor, Tensor]:
        sizes = [(cast, self.finished.schedule.sizes[cast]["train"]) for cast in self.truth.casts]
        cast = torch.cat([torch.full((n,), cast) for cast, n in sizes])
        return cast, torch.cat([torch.arange(n) for _, n in sizes])


def empty_handed(view: View, *, seed: int = 0) -> View:
    """The same view with noise in place of every message: normal numbers of the same mean and spread, labels at random.

    Reading a record twice gives the same noise.
    """
    noisy = {
        party: Transcript.of(
            party, [_noise(record, derive(seed, "noise", party, record.index)) for record in transcript]
        )
        for party, transcript in view.transcripts.items()
    }
    coins = torch.Generator().manual_seed(derive(seed, "noise", "wire"))
    order = torch.randperm(len(view.wire), generator=coins).tolist()
    wire = tuple(passage._replace(bytes=view.wire[i].bytes) for passage, i in zip(view.wire, order, strict=True))
    return replace(view, transcripts=noisy, wire=wire)


def _noise(record: Record, seed: int) -> Record:
    def load() -> Mapping[str, Tensor]:
        coins = torch.Generator().manual_seed(seed)
        return {name: _unlike(tensor, coins) for name, tensor in record.tensors.items()}

    return record if record.kind is Kind.CONTROL else replace(record, load=load)


def _unlike(tensor: Tensor, coins: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        flat = tensor.flatten()
        return flat[torch.randint(max(1, len(flat)), flat.shape, generator=coins)].reshape(tensor.shape)
    noise = torch.randn(tensor.shape, generator=coins, dtype=torch.float64)
    spread = float(tensor.double().std()) if tensor.numel() > 1 else 0.0
    return (noise * spread + float(tensor.double().mean())).to(tensor.dtype)
