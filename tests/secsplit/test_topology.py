"""Graphs are put in order, say what crosses, and nonsense is refused with its reason."""

import pytest

from secsplit.errors import TopologyError
from secsplit.message import Kind
from secsplit.topologies import TOPOLOGIES, named
from secsplit.topology import Objective, Segment, Topology

LOSS = Objective("loss", "top", holder="server", at="server")
BOTTOM, TOP = Segment("bottom", "client", ("data:x",)), Segment("top", "server", ("bottom",))


def graph(*segments: Segment, objectives: tuple[Objective, ...] = (LOSS,)) -> Topology:
    return Topology("mine", segments, objectives)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: graph(), "it has no segment"),
        (lambda: graph(BOTTOM, BOTTOM, TOP), "two segments are named 'bottom'"),
        (lambda: graph(BOTTOM, Segment("top", "server", ())), "segment 'top' has no input"),
        (lambda: graph(BOTTOM, Segment("top", "", ("bottom",))), "segment 'top' has no role"),
        (lambda: graph(BOTTOM, Segment("top", "server", ("botom",))), "did you mean 'bottom'"),
        (lambda: graph(BOTTOM, Segment("top", "server", ("bottom", "bottom"))), "takes an input twice"),
        (lambda: graph(BOTTOM, TOP, Segment("a:b", "c", ("top",))), "may not be empty or contain ':'"),
        (lambda: graph(BOTTOM, Segment("top", "s", ("bottom",), "join")), "merge 'join'"),  # type: ignore[arg-type]
        (
            lambda: graph(Segment("bottom", "client", ("top",)), TOP),
            "form a cycle: (bottom -> top -> bottom|top -> bottom -> top)",
        ),
        (lambda: graph(BOTTOM, TOP, objectives=()), "it has no objective"),
        (lambda: graph(BOTTOM, TOP, objectives=(LOSS, LOSS)), "two objectives are named 'loss'"),
        (lambda: graph(BOTTOM, TOP, objectives=(Objective("l", "tip", "s", "s"),)), "did you mean 'top'"),
        (lambda: graph(BOTTOM, TOP, objectives=(Objective("l", "top", "", "s"),)), "labels that nobody holds"),
        (lambda: graph(BOTTOM, TOP, objectives=(Objective("l", "top", "s", ""),)), "is computed nowhere"),
        (lambda: graph(BOTTOM, TOP, Segment("x", "client", ("bottom",))), "'x' feeds nothing"),
        (lambda: named("vanila"), "did you mean 'vanilla'"),
        (lambda: named("multi_hop", hop=2), "'multi_hop' has no such option; did you mean 'hops'"),
        (lambda: named("multi_hop", hops=0), "needs at least 1, got 0"),
    ],
)
def test_nonsense_is_refused_with_its_reason(make, reason: str) -> None:
    with pytest.raises(TopologyError, match=reason):
        make()


def test_segments_are_put_in_order_whatever_the_declared_one() -> None:
    segments = (TOP, Segment("middle", "hop", ("bottom",)), BOTTOM)
    topology = graph(Segment("top", "server", ("middle", "bottom")), *segments[1:])
    assert [s.name for s in topology.order] == ["bottom", "middle", "top"]


def crossings(topology: Topology) -> set[tuple[str, str, str]]:
    return {(c.kind, c.sender, c.receiver) for c in topology.crossings}


def test_u_shaped_sends_no_label_and_vanilla_does() -> None:
    assert Kind.LABELS not in {c.kind for c in named("u_shaped").crossings}
    assert (Kind.LABELS, "client", "server") in crossings(named("vanilla"))
    assert Kind.LABELS not in {c.kind for c in named("vanilla", labels="server").crossings}


def test_multi_hop_links_neighbours_only() -> None:
    assert named("multi_hop", hops=4).links == (
        ("client-1", "client-2"),
        ("client-2", "client-3"),
        ("client-3", "client-4"),
        ("client-4", "server"),
    )


def test_multi_task_returns_a_gradient_from_every_server() -> None:
    topology = named("multi_task", clients=2, tasks=("a", "b", "c"))
    gradients = {c.edge for c in topology.crossings if c.kind is Kind.CUT_GRAD and c.receiver == "client-1"}
    assert gradients == {"bottom-1->top-1", "bottom-1->top-2", "bottom-1->top-3"}


def test_labels_at_a_third_party_cross_to_the_loss() -> None:
    topology = graph(BOTTOM, TOP, objectives=(Objective("loss", "top", holder="registry", at="auditor"),))
    assert crossings(topology) >= {
        (Kind.LABELS, "registry", "auditor"),
        (Kind.OUTPUT, "server", "auditor"),
        (Kind.OUTPUT_GRAD, "auditor", "server"),
    }


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_role_and_column_is_accounted_for(name: str) -> None:
    topology = named(name)
    assert {s.role for s in topology.segments} <= set(topology.roles)
    assert any(topology.columns(role) for role in topology.roles)
    assert any(topology.labels(role) for role in topology.roles)
