"""The contract of a defense: what may be changed before it leaves a party, what may be added to its loss, what its
message costs in privacy.

A defense sits at one party and sees only that party's tensors. It never knows a peer, a channel or an attack. One that
gives no formal guarantee says so (`guarantee`), and no release of its own is ever charged as differentially private.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, overload

import torch
from torch import Tensor, nn

from secsplit.accounting import INPUTS, LABELS, Charge, Protects, Release, tightest, unbounded
from secsplit.message import Kind, Stamp

Guarantee = Literal["dp", "label-dp", "none", "detector"]


@dataclass(frozen=True)
class Outgoing:
    """One tensor about to leave a party.

    tensor: (batch, ...). Smashed data still carries its graph, so that clipping is differentiated; a cut gradient, an
    output or labels carry none. labels: (batch,) of the rows, where this party holds them (any objective's first
    column). rows: (batch,) positions in the cast's records. receiver: the peer it goes to. index, of: which of how many
    tensors of the message it is. target: a column of the inputs, where that is what the loss is held against.
    """

    kind: Kind
    edge: str
    stamp: Stamp
    tensor: Tensor
    labels: Tensor | None
    rows: Tensor
    receiver: str = ""
    index: int = 0
    of: int = 1
    target: bool = False

    @property
    def name(self) -> str:
        """Which release this is: the same for a resend, another for everything else; noise is drawn under this name."""
        s = self.stamp
        mode = "train" if s.training else "eval"
        return f"{self.kind}|{self.edge}|{self.receiver}|{mode}|{s.step}|{s.micro}|{s.epoch}|{s.cast}|{self.index}"


@dataclass(frozen=True)
class Incoming:
    """One tensor that a party was handed: (batch, ...), of the mean loss where it is a gradient."""

    kind: Kind
    edge: str
    stamp: Stamp
    tensor: Tensor
    labels: Tensor | None
    rows: Tensor
    sender: str = ""


class Host(Protocol):
    """What a defense may see of its party when it is prepared.

    modules, optimizers: by segment held; a defense may replace them. inputs: whether the party holds inputs of its own.
    labels: (cast, column) -> (n,) this party's own training labels, which label noise replaces once, before anything
    else has touched them.
    """

    name: str
    inputs: bool
    modules: MutableMapping[str, nn.Module]
    optimizers: MutableMapping[str, torch.optim.Optimizer]
    labels: MutableMapping[tuple[int, str], Tensor]


class Defense:
    """One mechanism at one party; subclasses override the hooks they need and leave the others alone.

    Its `Spec` says how it is called, whose idea it is and what is proven of it. steps: whether it does its work as a
    segment's optimizer steps, so that neither a copy of the segment nor gradients sent before that step are defended.
    """

    steps: ClassVar[bool] = False

    def covers(self, kind: Kind, edge: str) -> bool:
        """Whether this defense changes messages of that kind on that edge."""
        del kind, edge
        return False

    def prepare(self, host: Host) -> None:
        """Before the first step: wrap modules and optimizers, draw label noise once."""
        del host

    def begin(self, stamp: Stamp, rows: Tensor) -> None:
        """A training step is about to use these rows (batch,)."""
        del stamp, rows

    def outgoing(self, out: Outgoing) -> Tensor:
        """What leaves instead of `out.tensor`: (batch, ...)."""
        return out.tensor

    def incoming(self, came: Incoming) -> Tensor:
        """What the party goes on with instead of what came. Raises PeerError where it must not go on."""
        return came.tensor

    def penalty(self, edge: str, x: Tensor, h: Tensor) -> Tensor | None:
        """A term to add to this party's loss: x (batch, ...) its input, h (batch, ...) what it sends on `edge`."""
        del edge, x, h
        return None

    def bounds(self, out: Outgoing) -> tuple[Charge, ...]:
        """What this defense proves about the message, given the weights; empty where it proves nothing."""
        del out
        return ()

    def updates(self, segment: str) -> tuple[Charge, ...]:
        """What it proves about one optimizer step of a segment; empty where it proves nothing."""
        del segment
        return ()

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint must keep, so that a resumed party goes on exactly."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        del state


# What a message tells about its own rows, given the weights of the segments that made it.
DEPENDS: Mapping[Kind, tuple[Protects, ...]] = {
    Kind.SMASHED: (INPUTS,),
    Kind.OUTPUT: (INPUTS,),
    Kind.CUT_GRAD: (INPUTS, LABELS),
    Kind.OUTPUT_GRAD: (INPUTS, LABELS),
    Kind.LABELS: (LABELS,),
    Kind.WEIGHTS: (),
    Kind.CONTROL: (),
}


def depends_on(kind: Kind, *, target: bool = False) -> tuple[Protects, ...]:
    """What a message tells of; target: of labels that are a column of the inputs, as an autoencoder's are."""
    return (INPUTS,) if target and kind is Kind.LABELS else DEPENDS[kind]


PENDING = "pending."  # prefix, in a checkpoint, of steps that no message has been charged for yet


class Defenses(Sequence[Defense]):
    """The defenses of one party, in the order they act. Empty: every message is charged as having no finite bound."""

    def __init__(self, members: Sequence[Defense] = ()) -> None:
        self._members = tuple(members)
        self._owns: tuple[Protects, ...] = (INPUTS, LABELS)
        self._trained: tuple[str, ...] = ()
        self._pending: list[Release] = []

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Defense: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Defense, ...]: ...
    def __getitem__(self, index: int | slice) -> Defense | tuple[Defense, ...]:
        return self._members[index]

    def and_last(self, member: Defense) -> Defenses:
        """These, and one more that acts after them; nothing is prepared anew."""
        made = copy(self)
        made._members = (*self._members, member)
        return made

    def prepare(self, host: Host) -> None:
        """Let each defense see its party, in order; note which segments learn, and from whose records."""
        for member in self:
            member.prepare(host)
        self._owns = ((INPUTS,) if host.inputs else ()) + ((LABELS,) if host.labels else ())
        self._trained = tuple(
            name for name, module in host.modules.items() if any(p.requires_grad for p in module.parameters())
        )

    def begin(self, stamp: Stamp, rows: Tensor) -> None:
        """A training step is about to use these rows (batch,)."""
        if stamp.training:
            for member in self:
                member.begin(stamp, rows)

    def learns(self, stamp: Stamp, rows: Tensor) -> None:
        """The step that began is one that a ledger must know of: whatever leaves later may depend on its rows."""
        if stamp.training:
            self._learn(f"update|{stamp.step}|{stamp.epoch}|{stamp.cast}", stamp.cast, rows)

    def _learn(self, key: str, cast: int, rows: Tensor) -> None:
        """Note that the weights will have learnt from these rows, to be charged with the next message."""
        charges = tuple(self._update(segment, what) for segment in self._trained for what in self._owns)
        if charges:
            self._pending.append(Release(key, rows, cast, True, charges))

    def outgoing(self, out: Outgoing) -> Tensor:
        """The tensor after every defense that covers it: (batch, ...)."""
        for member in self:
            if member.covers(out.kind, out.edge):
                out = replace(out, tensor=member.outgoing(out))
        return out.tensor

    def incoming(self, came: Incoming) -> Tensor:
        """What the party goes on with, after every defense looked at what came."""
        for member in self:
            came = replace(came, tensor=member.incoming(came))
        return came.tensor

    def penalty(self, edge: str, x: Tensor, h: Tensor) -> Tensor | None:
        """The sum of all penalties on `edge`; None where there is none."""
        terms = [term for member in self if (term := member.penalty(edge, x, h)) is not None]
        return torch.stack(terms).sum() if terms else None

    def releases(self, out: Outgoing) -> Release:
        """What this message costs the records of this party; also charges the optimizer steps it may depend on."""
        depends = [what for what in depends_on(out.kind, target=out.target) if what in self._owns]
        charges = tuple(self._bound(out, what) for what in depends)
        updates, self._pending = tuple(self._pending), []
        return Release(out.name, out.rows, out.stamp.cast, out.stamp.training, charges, updates)

    def _bound(self, out: Outgoing, what: Protects) -> Charge:
        known = tightest(charge for member in self for charge in member.bounds(out) if charge.protects == what)
        return known or unbounded(what, "none", f"nothing bounds what {out.kind} messages on {out.edge} tell")

    def _update(self, segment: str, what: Protects) -> Charge:
        known = tightest(charge for member in self for charge in member.updates(segment) if charge.protects == what)
        return known or unbounded(what, "none", f"{segment} learns from these records without DP-SGD")

    def state(self) -> dict[str, Tensor]:
        """Every defense's state, under its place in the order, and the steps that are not charged yet."""
        members = {f"{i}.{key}": value for i, member in enumerate(self) for key, value in member.state().items()}
        return members | {f"{PENDING}{release.key}": release.rows for release in self._pending}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hand each defense its own state back; call it after `prepare`."""
        self._pending = []
        for key, rows in state.items():
            if key.startswith(PENDING):
                key = key.removeprefix(PENDING)
                self._learn(key, int(key.rpartition("|")[2]), rows)
        for i, member in enumerate(self):
            prefix = f"{i}."
            member.restore({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
