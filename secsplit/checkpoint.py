"""What a party needs to go on exactly where it stopped, and how parties agree on where that is.

A checkpoint is made at the schedule's `Save` events, where no message is under way. Weights, optimizer states, running
means, gathered losses and the defenses' states are in it, with the place in the schedule and in the transcript. There
is no random state to keep: whatever is drawn follows from the run's seed (or, for privacy noise, from a kept key) and
the name of what is drawn. Whole files are written aside and renamed; the rename is what makes a checkpoint.

Every party keeps its checkpoint until all have made the next (told along the tree that spans them), so however many are
killed, whenever, there is one that all have. This file knows messages and bytes, no folder and no channel.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from secsplit.copies import Mean, Replica
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.optimizers import restore as restore_optimizer
from secsplit.optimizers import state_of
from secsplit.run import Run
from secsplit.schedule import SPLITS, Save
from secsplit.steps import Recv, Send, Step, Steps

if TYPE_CHECKING:
    from secsplit.party import Party

VERSION = 1
START = "0000000000-0"  # the checkpoint before the first message
SAVED, ALL_SAVED = "saved", "all saved"  # the edges of what is told up the tree, and down again
MOST = 64  # checkpoints that a peer may offer
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One party's state at a place in the schedule; position None: before the census."""

    party: str
    digest: str
    position: Save | None
    sizes: Sequence[Sequence[int]]  # cast -> records by split; empty before the census
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]  # small things: counts, dtypes
    outside: Mapping[str, Any]  # what the folder adds: length of the transcript and of the metrics, the ledger's head

    @property
    def name(self) -> str:
        return name_of(self.position)


def name_of(position: Save | None) -> str:
    """Names sort as the places do."""
    return START if position is None else f"{position.step + 1:010d}-{int(position.last)}"


# one party's state


def taken(party: Party, outside: Mapping[str, Any] | None = None) -> Checkpoint:
    """The party's state now, on memory of its own."""
    tensors: Tensors = {}
    facts: dict[str, Any] = {}
    tensors |= _under("own", _replica(party.own))
    for role, mean in party.means.items():
        tensors |= _under(f"mean/{role}", mean.sums)
        facts[f"mean/{role}"] = {name: str(dtype) for name, dtype in mean.dtypes.items()}
    if party.copies is not None:
        tensors |= _under("copies/start", party.copies.start)
        tensors |= _under("copies/mean", party.copies.mean.sums)
        facts["copies/mean"] = {name: str(dtype) for name, dtype in party.copies.mean.dtypes.items()}
        for cast, replica in party.copies.busy.items():
            tensors |= _under(f"copies/busy/{cast}", _replica(replica))
        facts["copies/busy"] = list(party.copies.busy)
    tensors |= _under("judge", party.judge.losses)
    facts["judge"] = dict(party.judge.rows)
    tensors |= _under("defenses", party.defenses.state())
    sizes = [[by_split[split] for split in SPLITS] for _, by_split in sorted((party.sizes or {}).items())]
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return Checkpoint(party.name, party.run.digest().hex(), party.position, sizes, own, facts, outside or {})


def restored(party: Party, checkpoint: Checkpoint) -> None:
    """Go on from the checkpoint. Raises RunError where it is another run's or another party's."""
    if checkpoint.digest != party.run.digest().hex():
        raise RunError(f"checkpoint {checkpoint.name} of {checkpoint.party!r} was made by another run; it cannot go on")
    if checkpoint.party != party.name:
        raise RunError(f"checkpoint {checkpoint.name} is {checkpoint.party!r}'s, expected {party.name!r}'s")
    tensors, facts = checkpoint.tensors, checkpoint.facts
    try:
        _load(party.own, _below("own", tensors))
        for role in party.run.cohort_roles:
            if sums := _below(f"mean/{role}", tensors):
                party.means[role] = _mean(sums, facts[f"mean/{role}"])
        if party.copies is not None:
            party.copies.start = _below("copies/start", tensors)
            party.copies.mean = _mean(_below("copies/mean", tensors), facts["copies/mean"])
            for cast in facts["copies/busy"]:
                _load(party.copies.of(cast), _below(f"copies/busy/{cast}", tensors))
        party.judge.losses = _below("judge", tensors)
        party.judge.rows.update(facts["judge"])
        party.defenses.restore(_below("defenses", tensors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"checkpoint {checkpoint.name} of {party.name!r} does not fit this run: {error}") from None
    party.position = checkpoint.position
    if checkpoint.sizes:
        party.sizes = {cast: dict(zip(SPLITS, n, strict=True)) for cast, n in enumerate(checkpoint.sizes)}


def _replica(replica: Replica) -> Tensors:
    found = _under("weights", replica.named())
    for segment, optimizer in replica.optimizers.items():
        found |= _under(f"optimizer/{segment}", state_of(optimizer))
    return found


def _load(replica: Replica, tensors: Mapping[str, Tensor]) -> None:
    replica.load(_below("weights", tensors))
    for segment, optimizer in replica.optimizers.items():
        restore_optimizer(optimizer, _below(f"optimizer/{segment}", tensors))


def _mean(sums: Tensors, dtypes: Mapping[str, str]) -> Mean:
    import torch

    mean = Mean()
    mean.sums = sums
    mean.dtypes = {name: getattr(torch, text.removeprefix("torch.")) for name, text in dtypes.items()}
    return mean


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


# bytes


def encoded(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as one safetensors file."""
    rest = {
        "party": checkpoint.party,
        "digest": checkpoint.digest,
        "position": asdict(checkpoint.position) if checkpoint.position is not None else None,
        "sizes": checkpoint.sizes,
        "facts": checkpoint.facts,
        "outside": checkpoint.outside,
    }
    return save(dict(checkpoint.tensors), {"version": str(VERSION), "rest": json.dumps(rest)})


def decoded(path: str, content: bytes) -> Checkpoint:
    """A checkpoint file's content. Raises RunError naming the file where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("version") != str(VERSION):
            raise RunError(f"{path}: checkpoint version {metadata.get('version')}, expected {VERSION}")
        rest = json.loads(metadata["rest"])
        position = Save(**rest["position"]) if rest["position"] is not None else None
        return Checkpoint(
            rest["party"], rest["digest"], position, rest["sizes"], load(content), rest["facts"], rest["outside"]
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a checkpoint that can be read: {error}") from None


# all parties together


def all_saved(party: Party, save: Save) -> Steps:
    """Return once every party has made this checkpoint: told up the tree, and down again."""
    run, name = party.run, party.name
    stamp = Stamp(save.step, int(save.last), save.epoch, training=False)
    parent, children = run.above(name), run.below(name)
    for child in children:
        yield Recv(child, Kind.CONTROL, SAVED, stamp)
    if parent is not None:
        yield Send(parent, Message(Kind.CONTROL, SAVED, stamp))
        yield Recv(parent, Kind.CONTROL, ALL_SAVED, stamp)
    for child in children:
        yield Send(child, Message(Kind.CONTROL, ALL_SAVED, stamp))


def newest_common(run: Run, name: str, offered: Sequence[str]) -> Generator[Step, Message | None, str]:
    """The newest checkpoint that all parties have, settled with the peers before anything is recorded.

    Raises RunError where there is none: then some party has lost its part, or started anew.
    """
    common = set(offered)
    stamp, parent, children = Stamp(training=False), run.above(name), run.below(name)
    for child in children:
        message = yield Recv(child, Kind.CONTROL, "checkpoints", stamp)
        assert message is not None
        common &= set(_names(message, child))
    if parent is None:
        chosen = max(common, default="")
    else:
        yield Send(parent, Message(Kind.CONTROL, "checkpoints", stamp, facts={"names": sorted(common)}))
        message = yield Recv(parent, Kind.CONTROL, "begin", stamp)
        assert message is not None
        chosen = str(message.facts.get("name", ""))
        if chosen and chosen not in offered:
            raise PeerError(parent, f"asks to go on from checkpoint {chosen!r}, which {name!r} does not have")
    for child in children:
        yield Send(child, Message(Kind.CONTROL, "begin", stamp, facts={"name": chosen}))
    if not chosen:
        raise RunError(
            f"no checkpoint that all parties have (here: {', '.join(offered)}): one has lost its part or begins anew; "
            "resume at every site, or start again everywhere with 'secsplit join'"
        )
    return chosen


def _names(message: Message, peer: str) -> list[str]:
    names = message.facts.get("names")
    if not isinstance(names, list) or len(names) > MOST or not all(isinstance(n, str) and len(n) < 64 for n in names):
        raise PeerError(peer, f"expected the names of at most {MOST} checkpoints")
    return [str(name) for name in names]
