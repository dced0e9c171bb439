"""One client of several as the adversary: it is handed another's weights, and reads what that one sent."""

import pytest

from attacks.inverse_network import InverseNetwork
from attacks.white_box import WhiteBox
from audits.config import AuditSpec, ThreatSpec
from audits.privacy import audit
from audits.views import view_of
from secsplit.errors import RunError
from secsplit.message import Kind
from secsplit.threat import Knows, Threat
from tests.audits.conftest import trained

LENET = {"name": "lenet", "cut": ["pool1"]}
NEXT = Threat("the next client", ("client", "server"), knows=frozenset({Knows.AUX}), parties=("hospital-b",))


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory):
    return trained(tmp_path_factory.mktemp("handed"), model=LENET, method={"name": "sl-am"})


def test_it_holds_its_own_records_weights_and_messages_alone(handed) -> None:
    view = view_of(handed, NEXT)
    assert set(view.transcripts) == {"hospital-b", "compute"}
    assert "x" in view.own[1].inputs
    assert not view.own[0].inputs
    assert set(view.asked) == {0}
    assert next(r.peer for r in view.records(Kind.WEIGHTS)) == "hospital-a"


def test_the_weights_it_is_handed_read_the_other_clients_messages(handed) -> None:
    spec = AuditSpec(
        threats={"next": ThreatSpec(who=NEXT.who, parties=NEXT.parties, knows=NEXT.knows)}, control=True, gallery=0
    )
    found = audit(handed, spec, attacks=[WhiteBox(rows=40), InverseNetwork()])
    by = {cell.attack: cell for cell in found.cells}
    for name in ("white-box", "inverse-network"):
        assert by[name].status == "ran", by[name].because
        again = next(leak for leak in by[name].leakages if leak.metric == "re-identification")
        assert again.value > 0.6
        assert again.leaks
        blind = next(b for b in again.baselines if "noise" in b.name)
        assert blind.value < 0.15
    assert found.threats[0].who == ("hospital-b",)


def test_without_the_server_it_sees_no_smashed_data(handed) -> None:
    alone = Threat("alone", ("client",), knows=frozenset({Knows.AUX}), parties=("hospital-b",))
    found = audit(handed, AuditSpec(threats={"a": ThreatSpec(who=("client",), parties=("hospital-b",))}),
                  attacks=[WhiteBox()])  # fmt: skip
    assert found.cells[0].status == "not applicable"
    assert not list(view_of(handed, alone).records(Kind.SMASHED))


def test_a_party_that_is_not_there_is_named(handed) -> None:
    with pytest.raises(RunError, match="no party 'hospital-z' of client here"):
        view_of(handed, Threat("t", ("client",), parties=("hospital-z",)))


def test_whoever_averages_reads_through_the_weights_it_was_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    averaged = trained(tmp_path_factory.mktemp("averaged"), model=LENET, method={"name": "splitfed-v1"})
    knows = frozenset({Knows.ARCHITECTURE})
    spec = AuditSpec(threats={"server": ThreatSpec(who=("server",), knows=knows)}, control=False, gallery=0)
    (cell,) = audit(averaged, spec, attacks=[WhiteBox(rows=40)]).cells
    assert cell.status == "ran", cell.because
    assert next(leak.value for leak in cell.leakages if leak.metric == "re-identification") > 0.6


def test_where_no_weights_are_sent_it_says_so(finished) -> None:
    knows = frozenset({Knows.ARCHITECTURE})
    spec = AuditSpec(threats={"server": ThreatSpec(who=("server",), knows=knows)}, control=False, gallery=0)
    (cell,) = audit(finished, spec, attacks=[WhiteBox(rows=40)]).cells
    assert cell.status == "not applicable"
    assert "does not know the weights of bottom" in cell.because


HALVES = {"x1": "left", "x2": "right"}
EXTENDED = {"west": {"role": "client-1"}, "east": {"role": "client-2"}, "trust": {"role": "intermediate"}}
CHAIN = {"clinic": {"role": "client-1"}, "relay-1": {"role": "client-2"}, "relay-2": {"role": "client-3"}}
SERVER = {"compute": {"role": "server"}}


@pytest.mark.parametrize(
    ("topology", "data", "parties", "who", "column", "least"),
    [
        ("extended_vanilla", {"modalities": HALVES}, EXTENDED, ("intermediate",), "x1", 0.5),
        ("extended_vanilla", {"modalities": HALVES}, EXTENDED, ("client-1", "intermediate"), "x2", 0.5),
        ("extended_vanilla", {"modalities": HALVES}, EXTENDED, ("server",), "x1", 0.01),
        ("multi_hop", {}, CHAIN, ("client-2",), "x", 0.5),
        ("multi_hop", {}, CHAIN, ("server",), "x", 0.01),
        ("multi_hop", {}, CHAIN, ("client-2", "server"), "x", 0.5),
    ],
    ids=["intermediate", "client with intermediate", "server behind it", "a hop", "server", "a hop with the server"],
)
def test_every_place_in_a_chain_reads_what_it_is_sent(
    topology, data, parties, who, column, least, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Chance is one in 240. A client in league is asked about the others' records."""
    run = trained(
        tmp_path_factory.mktemp("chain"),
        topology={"name": topology},
        model={"name": "mlp", **({"widths": (48, 32, 24)} if topology == "multi_hop" else {})},
        data={"name": "digits", "limit": 240, "limit_test": 120, **data},
        parties={**parties, **SERVER},
    )
    knows = frozenset({Knows.AUX, Knows.QUERY})
    spec = AuditSpec(threats={"t": ThreatSpec(who=who, knows=knows)}, control=False, gallery=0)
    (cell,) = audit(run, spec, attacks=[InverseNetwork()]).cells
    assert cell.status == "ran", cell.because
    again = next(leak for leak in cell.leakages if leak.metric == "re-identification")
    assert again.column == column
    assert again.value > least
