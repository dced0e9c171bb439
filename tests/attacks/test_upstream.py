"""The private part of the graph, over every topology, against running the whole graph by hand."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.upstream import Upstream, above, column_of, held_above, known_networks
from secsplit.threat import Knows, Threat
from secsplit.topologies import TOPOLOGIES, extended_vanilla, multi_hop, vertical
from tests.attacks import runs


@pytest.mark.parametrize("name", [n for n in TOPOLOGIES if n != "whole"])
def test_the_source_comes_last_and_all_it_takes_before(name):
    topology = TOPOLOGIES[name]()
    for edge in topology.edges:
        names = [s.name for s in Upstream(topology, edge.name).segments]
        assert names[-1] == edge.source.name
        assert all(source in names for n in names for source in topology[n].sources)
        assert edge.user.name not in names


def test_columns_of_an_intermediate_client_and_of_its_server():
    topology = extended_vanilla()
    assert Upstream(topology, "bottom-1->middle").columns == ("x1",)
    assert Upstream(topology, "middle->top").columns == ("x1", "x2")


def test_running_the_part_above_gives_the_message():
    victim = runs.small("multi_hop", (1, 2, 3), steps=5)
    view = victim.view("server", knows={Knows.QUERY})
    up = above(view)
    assert [s.name for s in up.segments] == ["hop-1", "hop-2", "hop-3"]
    x = victim.inputs["x"][:3]
    expected = x
    for hop in up.segments:
        expected = victim.nets[hop.name](expected)
    torch.testing.assert_close(up.run(known_networks(view, up), {"x": x}), expected)


def test_a_coalition_attacks_at_its_shallowest_edge_unless_told():
    victim = runs.small("multi_hop", (1, 2, 3), steps=5)
    view = victim.view("client-2", "server")
    assert above(view).edge == "hop-1->hop-2"
    assert above(view, edge="hop-3->top").edge == "hop-3->top"
    assert "hop-2" in known_networks(view, above(view, edge="hop-3->top"))
    with pytest.raises(NotApplicable, match="hop-1->hop-2, hop-3->top"):
        above(view, edge="hop-2->hop-3")


def test_a_column_that_does_not_go_in_is_refused():
    up = Upstream(vertical(), "radiology-bottom->top")
    assert column_of(up, None) == "radiology"
    with pytest.raises(NotApplicable, match="pathology"):
        column_of(up, "pathology")


def test_a_party_that_receives_nothing_has_nothing_to_invert():
    with pytest.raises(NotApplicable, match="client was sent no smashed message"):
        above(runs.small(steps=2).view("client"))


def test_who_holds_all_above_an_edge():
    assert held_above(multi_hop(), Threat("a", ("client-1", "client-2")))
    assert not held_above(multi_hop(), Threat("b", ("client-2", "client-3")))
