"""Whether the parts of a run fit together: roles and parties, method and cuts, columns and data.

Each check looks at one `Run` and raises RunError naming the key, what came, and the fix.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from channels.onion import HOPS
from secsplit.defenses import check
from secsplit.errors import RunError, nearest
from secsplit.method import AGGREGATOR, AVERAGED
from secsplit.optimizers import optimizer_of, rates_of

if TYPE_CHECKING:
    from secsplit.run import Run


def refuse_misfits(run: Run) -> None:
    """Every check, the most telling first. Raises RunError."""
    _parties(run)
    _method(run)
    _compression(run)
    _columns(run)
    _circuits(run)
    check(run.file.defenses, run.topology, micro_batches=run.file.train.micro_batches)


def _parties(run: Run) -> None:
    roles = run.topology.roles
    averaged = run.method.client_side in AVERAGED
    for name, party in run.file.parties.items():
        if party.role == AGGREGATOR and averaged and AGGREGATOR not in roles:
            continue
        if party.role not in roles:
            raise RunError(
                f"parties.{name}.role: {party.role!r} is no role of topology {run.topology.name!r}; "
                f"{nearest(party.role, roles)}"
            )
    if len(run.parties(AGGREGATOR)) > 1 and AGGREGATOR not in roles:
        raise RunError(f"parties: {len(run.parties(AGGREGATOR))} play {AGGREGATOR!r}; one averages")
    for role in roles:
        if not run.parties(role):
            raise RunError(
                f"parties: nobody plays role {role!r} of topology {run.topology.name!r}; add a party with it"
            )
    sizes = {role: len(run.parties(role)) for role in roles if len(run.parties(role)) > 1}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role}: {n}" for role, n in sizes.items())
        raise RunError(f"parties: roles shared by several parties need the same number of them, got {listed}")


def _method(run: Run) -> None:
    cut = any(edge.crosses for edge in run.topology.edges)
    if run.method.server_side == "none" and cut:
        raise RunError(
            f"method.name: {run.method.name!r} trains a network without a cut, and topology {run.topology.name!r} has "
            "cuts; use topology 'whole', or a split method"
        )
    if run.method.server_side != "none" and not run.topology.crossings:
        raise RunError(f"topology.name: {run.topology.name!r} has no cut; use method 'federated' or 'large-batch'")
    if run.method.client_side in AVERAGED and len(run.casts) > 1 and run.aggregator is None:
        raise RunError(
            f"parties: method {run.method.name!r} averages what clients trained, and it is not clear who does that; "
            f'add one party with role = "{AGGREGATOR}"'
        )
    for role in run.cohort_roles if run.method.via == "server" else ():
        if run.carrier(role) is None:
            raise RunError(
                f"method.via: no single party exchanges messages with all who play {role!r}; use via = 'peer'"
            )
    for role in run.file.optimizers:
        if role not in run.topology.roles:
            raise RunError(f"optimizers.{role}: no role of this topology; {nearest(role, run.topology.roles)}")
    specs = {"optimizer": run.file.optimizer} | {f"optimizers.{r}": spec for r, spec in run.file.optimizers.items()}
    for where, spec in specs.items():
        optimizer_of(spec, where=where)
        rates_of(spec, run.file.train.epochs, where=where)


def _compression(run: Run) -> None:
    cuts = [edge.name for edge in run.topology.edges if edge.crosses]
    for place, spec in enumerate(run.file.compression):
        if spec.edge != "*" and spec.edge not in cuts:
            raise RunError(f"compression.{place}.edge: {spec.edge!r} is no cut here; {nearest(spec.edge, cuts)}")


def _columns(run: Run) -> None:
    for role in run.topology.roles:
        for party in run.parties(role):
            spec = run.file.parties[party].data or run.file.data
            where = f"parties.{party}.data" if run.file.parties[party].data else "data"
            for column in run.topology.columns(role):
                if column not in spec.modalities:
                    raise RunError(
                        f"{where}.modalities: role {role!r} needs input column {column!r}, which is not declared; "
                        f"{nearest(column, spec.modalities)}"
                    )
            for column in run.topology.labels(role):
                if column not in spec.labels:
                    raise RunError(
                        f"{where}.labels: role {role!r} needs label column {column!r}, which is not declared; "
                        f"{nearest(column, spec.labels)}"
                    )


def _circuits(run: Run) -> None:
    links = {frozenset(link) for link in run.links}
    for name, party in run.file.parties.items():
        where, beyond = f"parties.{name}.through", [peer for peer in run.peers(name) if run.circuit(name, peer)]
        for hop in party.through:
            if hop not in run.file.parties or hop == name or party.through.count(hop) > 1:
                raise RunError(f"{where}: {hop!r} is no other party, named once; {nearest(hop, run.file.parties)}")
        if party.through and not beyond:
            last = party.through[-1]
            raise RunError(f"{where}: {name!r} exchanges messages with nobody beyond {last!r}; leave it out")
        if len(party.through) >= HOPS:
            raise RunError(f"{where}: {len(party.through)} hops, expected at most {HOPS - 1}")
        for path in (run.circuit(name, peer) for peer in beyond if party.through):
            for one, other in pairwise(path):
                if frozenset((one, other)) not in links or run.circuit(one, other):
                    raise RunError(f"{where}: {one!r} and {other!r} are no neighbours; name the hops in their order")
