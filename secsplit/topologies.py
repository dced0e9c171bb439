"""The six configurations of Vepakomma et al. 2018 (arXiv 1812.00564, figures 2 and 4), each a few lines of data.

`whole` is the network without a cut, which federated learning and large-batch SGD train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from secsplit.errors import TopologyError, nearest
from secsplit.topology import Loss, Objective, Segment, Topology


def vanilla(*, labels: str = "client", loss: Loss = "cross_entropy") -> Topology:
    """client:bottom -> server:top; labels are sent to the server, or (labels="server") the server owns them."""
    return Topology(
        "vanilla",
        (Segment("bottom", "client", ("data:x",)), Segment("top", "server", ("bottom",))),
        (Objective("loss", "top", holder=labels, at="server", loss=loss),),
        "client's bottom feeds the server's top; "
        + (
            "the server holds the labels"
            if labels == "server"
            else f"the labels are sent from the {labels} to the server"
        ),
    )


def u_shaped(*, loss: Loss = "cross_entropy") -> Topology:
    """client:bottom -> server:middle -> client:head; labels and loss stay at the client."""
    return Topology(
        "u_shaped",
        (
            Segment("bottom", "client", ("data:x",)),
            Segment("middle", "server", ("bottom",)),
            Segment("head", "client", ("middle",)),
        ),
        (Objective("loss", "head", holder="client", at="client", loss=loss),),
        "both ends at the client, the middle at the server; no label is sent",
    )


def vertical(
    *, modalities: Sequence[str] = ("radiology", "pathology"), labels: str = "server", loss: Loss = "cross_entropy"
) -> Topology:
    """One bottom a modality, at a role and on a column of the modality's name; concatenated at the server's top."""
    bottoms = tuple(Segment(f"{name}-bottom", name, (f"data:{name}",)) for name in modalities)
    return Topology(
        "vertical",
        (*bottoms, Segment("top", "server", tuple(bottom.name for bottom in bottoms))),
        (Objective("loss", "top", holder=labels, at="server", loss=loss),),
        "institutions with different modalities of the same patients, concatenated at the server",
    )


def extended_vanilla(*, clients: int = 2, labels: str = "server", loss: Loss = "cross_entropy") -> Topology:
    """client-1..n -> concat -> intermediate client:middle -> server:top."""
    _at_least("extended_vanilla", "clients", clients, 1)
    bottoms = tuple(Segment(f"bottom-{i}", f"client-{i}", (f"data:x{i}",)) for i in range(1, clients + 1))
    return Topology(
        "extended_vanilla",
        (
            *bottoms,
            Segment("middle", "intermediate", tuple(bottom.name for bottom in bottoms)),
            Segment("top", "server", ("middle",)),
        ),
        (Objective("loss", "top", holder=labels, at="server", loss=loss),),
        "clients' outputs are processed by another client before the server sees them",
    )


def multi_task(
    *, clients: int = 2, tasks: Sequence[str] = ("y", "y2"), labels: str = "", loss: Loss = "cross_entropy"
) -> Topology:
    """client-1..n -> concat -> every task's server; a task is a label column, held by its server unless `labels` says.

    The clients' gradients are the sums over the tasks.
    """
    _at_least("multi_task", "clients", clients, 1)
    _at_least("multi_task", "tasks", len(tasks), 1)
    bottoms = tuple(Segment(f"bottom-{i}", f"client-{i}", (f"data:x{i}",)) for i in range(1, clients + 1))
    servers = {task: f"server-{i}" for i, task in enumerate(tasks, 1)}
    shared = tuple(bottom.name for bottom in bottoms)
    return Topology(
        "multi_task",
        (*bottoms, *(Segment(f"top-{i}", f"server-{i}", shared) for i in range(1, len(tasks) + 1))),
        tuple(
            Objective(f"loss-{task}", f"top-{i}", holder=labels or server, at=server, target=task, loss=loss)
            for i, (task, server) in enumerate(servers.items(), 1)
        ),
        "shared outputs feed one server a task; gradients of all tasks are summed at the clients",
    )


def multi_hop(*, hops: int = 3, labels: str = "server", loss: Loss = "cross_entropy") -> Topology:
    """client-1 -> client-2 -> ... -> client-n -> server:top: the Tor-like chain; a hop knows its neighbours only."""
    _at_least("multi_hop", "hops", hops, 1)
    chain = [Segment("hop-1", "client-1", ("data:x",))]
    chain += [Segment(f"hop-{i}", f"client-{i}", (f"hop-{i - 1}",)) for i in range(2, hops + 1)]
    return Topology(
        "multi_hop",
        (*chain, Segment("top", "server", (chain[-1].name,))),
        (Objective("loss", "top", holder=labels, at="server", loss=loss),),
        "a chain of clients, each knowing only its neighbours, ends at the server",
    )


def whole(*, loss: Loss = "cross_entropy") -> Topology:
    """client:network, no cut: what federated learning and large-batch SGD train."""
    return Topology(
        "whole",
        (Segment("network", "client", ("data:x",)),),
        (Objective("loss", "network", holder="client", at="client", loss=loss),),
        "the whole network at the client: no cut",
    )


TOPOLOGIES: Mapping[str, Callable[..., Topology]] = MappingProxyType(
    {
        "vanilla": vanilla,
        "u_shaped": u_shaped,
        "vertical": vertical,
        "extended_vanilla": extended_vanilla,
        "multi_task": multi_task,
        "multi_hop": multi_hop,
        "whole": whole,
    }
)


def named(name: str, **options: object) -> Topology:
    """The topology of that name. Raises TopologyError for an unknown name or option."""
    maker = TOPOLOGIES.get(name)
    if maker is None:
        raise TopologyError(f"topology: unknown name {name!r}; {nearest(name, TOPOLOGIES)}")
    known = set(maker.__kwdefaults__ or {})
    for option in options:
        if option not in known:
            raise TopologyError(f"topology.{option}: {name!r} has no such option; {nearest(option, known)}")
    return maker(**options)


def _at_least(topology: str, option: str, value: int, least: int) -> None:
    if value < least:
        raise TopologyError(f"topology.{option}: {topology!r} needs at least {least}, got {value}")
