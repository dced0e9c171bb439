"""Whose weights are shared when: hand-over from client to client, averages of weights, averages of gradients.

Each function is what one party does at one event of the schedule. An average is computed by the party with the role
"aggregator", or else by the only server; it takes the clients' tensors one client after another, in the schedule's
order, and keeps the running mean alone. Whoever averages sees each client's weights, and the transcript says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secsplit.copies import Weights
from secsplit.envelopes import envelope_of
from secsplit.errors import PeerError
from secsplit.message import Kind, Message, Stamp
from secsplit.optimizers import restore, state_of
from secsplit.schedule import Gather, Handover, Spread
from secsplit.steps import Recv, Send, Steps

if TYPE_CHECKING:
    from secsplit.party import Party

NO_ROWS = torch.empty(0, dtype=torch.int64)  # of a message that is about no record in particular
STATE = "optimizer/"  # prefix of an optimizer's tensors among handed-over weights


# hand-over


def hand_over(party: Party, event: Handover) -> Steps:
    """Pass the cohort's weights on, peer to peer, or sealed to the next client by way of the server."""
    giver, taker = (party.run.casts[cast].get(party.role) for cast in (event.giver, event.taker))
    stamp = Stamp(event.step, 0, event.epoch, event.taker)
    carrier = party.run.carrier(party.role)
    if party.name == giver != taker:
        assert taker is not None
        message = Message(Kind.WEIGHTS, party.role, stamp, _handed(party))
        yield replace(party.send(taker, message, NO_ROWS), via=carrier)
    elif party.name == taker != giver:
        assert giver is not None
        came = yield Recv(giver, Kind.WEIGHTS, party.role, stamp, via=carrier)
        assert came is not None
        _take_over(party, party.accepted(giver, came), giver)
    else:
        yield from _carry(party, event)


def _carry(party: Party, event: Handover) -> Steps:
    """Pass on envelopes from one client to the next, unread."""
    for role in party.run.cohort_roles:
        if party.run.carrier(role) == party.name:
            giver, taker = (party.run.casts[cast][role] for cast in (event.giver, event.taker))
            envelope = yield Recv(giver, Kind.WEIGHTS, role, Stamp(event.step, 0, event.epoch, event.taker))
            assert envelope is not None
            envelope_of(envelope, giver)
            yield Send(taker, envelope)


def _handed(party: Party) -> Weights:
    weights = _copied(party, party.own.named())
    if party.run.method.hands == "weights-and-optimizer":
        for segment, optimizer in party.own.optimizers.items():
            states = {f"{STATE}{segment}/{key}": value for key, value in state_of(optimizer).items()}
            weights |= _copied(party, states)
    return weights


def _take_over(party: Party, message: Message, giver: str) -> None:
    weights = {name: tensor for name, tensor in message.tensors.items() if not name.startswith(STATE)}
    states = {name: tensor for name, tensor in message.tensors.items() if name.startswith(STATE)}
    if states and party.run.method.hands != "weights-and-optimizer":
        raise PeerError(giver, "handed over its optimizer's state, which this run does not agree on")
    check_like(weights, party.own.named(), giver, message.edge)
    party.own.load(weights)
    if party.run.method.hands == "weights-and-optimizer":
        for segment, optimizer in party.own.optimizers.items():
            prefix = f"{STATE}{segment}/"
            mine = {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
            try:
                restore(optimizer, mine)
            except ValueError as error:
                raise PeerError(giver, f"handed over {error}") from None


# averages


def gather(party: Party, event: Gather) -> Steps:
    """Clients that are done give what they trained; whoever averages takes it in."""
    method = party.run.method
    if party.copies is not None:
        party.copies.gather(event.casts, event.shares)
    if method.client_side not in ("averaged", "gradients-averaged"):
        return
    for role in party.run.cohort_roles:
        for cast, share in zip(event.casts, event.shares, strict=True):
            name = party.run.casts[cast][role]
            stamp = Stamp(event.step, 0, event.epoch, cast)
            if party.name == name:
                yield party.send(_aggregator(party), Message(Kind.WEIGHTS, role, stamp, _given(party)), NO_ROWS)
            elif party.name == party.run.aggregator:
                message = yield Recv(name, Kind.WEIGHTS, role, stamp)
                assert message is not None
                mean = party.means[role]
                if mean.sums:
                    check_like(message.tensors, mean.sums, name, role, dtypes=False)
                mean.add(party.accepted(name, message).tensors, share)


def spread(party: Party, event: Spread) -> Steps:
    """The average goes back to the clients, and becomes what everyone starts from."""
    if party.copies is not None:
        party.copies.spread()
    if party.run.method.client_side not in ("averaged", "gradients-averaged"):
        return
    for role in party.run.cohort_roles:
        average = party.means[role].take() if party.name == party.run.aggregator else {}
        for cast in event.casts:
            name = party.run.casts[cast][role]
            stamp = Stamp(event.step, 0, event.epoch, cast)
            if party.name == party.run.aggregator:
                yield party.send(name, Message(Kind.WEIGHTS, role, stamp, average), NO_ROWS)
            elif party.name == name:
                aggregator = _aggregator(party)
                message = yield Recv(aggregator, Kind.WEIGHTS, role, stamp)
                assert message is not None
                _take_average(party, party.accepted(aggregator, message), event)


def _given(party: Party) -> Weights:
    if party.run.method.client_side == "averaged":
        return _copied(party, _averaged(party))
    return _copied(party, {**_gradients(party), **_statistics(party)})


def _copied(party: Party, tensors: Mapping[str, Tensor]) -> Weights:
    """What leaves: on memory of its own, where messages are."""
    return {name: party.away(tensor).clone() for name, tensor in tensors.items()}


def _take_average(party: Party, message: Message, event: Spread) -> None:
    if party.run.method.client_side == "averaged":
        check_like(message.tensors, _averaged(party), _aggregator(party), message.edge)
        party.own.load(message.tensors)
        party.own.forget()
        return
    statistics, learning = _statistics(party), dict(_learning(party))
    check_like(message.tensors, {**learning, **statistics}, _aggregator(party), message.edge)
    party.own.load({name: message.tensors[name] for name in statistics})
    for name, parameter in learning.items():
        parameter.grad = message.tensors[name].to(parameter.device)
    party.update(party.own, event.epoch)


def _averaged(party: Party) -> Weights:
    return party.own.named(without_norms=party.run.method.batch_norm == "local")


def _learning(party: Party) -> Iterator[tuple[str, Tensor]]:
    for segment, module in party.own.modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{segment}.{name}", parameter


def _gradients(party: Party) -> Weights:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.detach() for n, p in _learning(party)}


def _statistics(party: Party) -> Weights:
    """Buffers, which no gradient moves: BatchNorm's running statistics; none where they stay with each client."""
    if party.run.method.batch_norm == "local":
        return {}
    parameters = {f"{s}.{name}" for s, module in party.own.modules.items() for name, _ in module.named_parameters()}
    return {name: tensor for name, tensor in party.own.named().items() if name not in parameters}


def _aggregator(party: Party) -> str:
    assert party.run.aggregator is not None  # the run was checked
    return party.run.aggregator


def check_like(
    came: Mapping[str, Tensor], like: Mapping[str, Tensor], peer: str, role: str, *, dtypes: bool = True
) -> None:
    """Raises PeerError where tensors have other names, shapes or dtypes than those of this role's segments."""
    if came.keys() != like.keys():
        strange = sorted(came.keys() ^ like.keys())[0]
        raise PeerError(peer, f"weights of {role!r} do not fit: {strange!r} is missing or unexpected")
    for name, tensor in like.items():
        other = came[name]
        if other.shape != tensor.shape or (dtypes and other.dtype != tensor.dtype):
            raise PeerError(
                peer,
                f"weights of {role!r} do not fit: {name!r}: expected {tuple(tensor.shape)} {tensor.dtype}, "
                f"got {tuple(other.shape)} {other.dtype}",
            )
