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
