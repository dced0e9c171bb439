"""Plain tensors: what goes out is what crossed and gives a peer the same figure; what comes in is audited as ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from typer.testing import CliRunner

from attacks.gradient_clustering import ClueDistance, GradientClustering
from attacks.gradient_norm import GradientNorm
from attacks.inverse_network import InverseNetwork
from attacks.white_box import WhiteBox
from audits.config import AuditSpec
from audits.finished import Finished
from audits.foreign import Foreign, audit_foreign
from audits.plain import exported, read, write
from audits.privacy import Audit, audit
from audits.views import view_of
from secsplit import cli
from secsplit.errors import DataError, RunError
from secsplit.message import Kind
from secsplit.threat import Threat
from tests.audits.conftest import trained

SPEC = AuditSpec(gallery=0)


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A zero or not, on digits: labels at the server."""
    data = {"name": "digits", "labels": {"y": "y in 0"}, "limit": 600, "limit_test": 120}
    return trained(tmp_path_factory.mktemp("run"), data=data, train={"seed": 1, "epochs": 2, "batch_size": 60})


def peers_norm_attack(gradients: Tensor, labels: Tensor) -> float:
    """AIJack's (attack/labelleakage/normattack.py), by its formula: norms of all rows, one area over the epoch."""
    norm = gradients.pow(2).sum(dim=1).sqrt()
    return float(roc_auc_score(labels, norm.view(-1, 1)))


def test_what_goes_out_is_what_crossed(rare: Finished) -> None:
    tensors = exported(rare, "hospital-a")
    own = [r for r in rare.transcripts["hospital-a"] if r.stamp.training]
    assert torch.equal(tensors["activations"], torch.cat([r.tensor for r in own if r.kind is Kind.SMASHED]))
    assert torch.equal(tensors["gradients"], torch.cat([r.tensor for r in own if r.kind is Kind.CUT_GRAD]))
    assert torch.equal(tensors["labels"], rare.truth.label("y", tensors["cast"], tensors["position"]))
    theirs = exported(rare, "compute")
    assert len(theirs["labels"]) == 2 * 600  # both hospitals, two epochs
    with pytest.raises(RunError, match="no transcript of 'hospital-c'"):
        exported(rare, "hospital-c")


def test_a_peers_norm_attack_finds_the_same_in_what_went_out(rare: Finished, tmp_path: Path) -> None:
    """Ours ranks by the same norms: over one batch the areas are equal, to the last bit."""
    write(tmp_path / "a.npz", exported(rare, "hospital-a"))
    with np.load(tmp_path / "a.npz") as arrays:  # as anybody would read it
        gradients, labels, step = (torch.as_tensor(arrays[n]) for n in ("gradients", "labels", "step"))
    guess = GradientNorm().infer(view_of(rare, Threat("t", ("client",))), coins=torch.Generator())
    assert guess.scores is not None
    compared = 0
    for each in step.unique():
        mine, rows = guess.step == each, step == each
        truth = rare.truth.label("y", guess.cast[mine], guess.position[mine])
        if not 0 < int(truth.sum()) < len(truth):
            continue
        assert roc_auc_score(truth, guess.scores[mine]) == peers_norm_attack(gradients[rows], labels[rows])
        compared += 1
    assert compared >= 5


class Replayed:
    """Stands where AIJack's attack expects its own split network: every batch's cut gradient is the recorded one."""

    def __init__(self) -> None:
        self.clients = [SimpleNamespace(grad_from_next_client=torch.empty(0))]

    def __call__(self, gradients: Tensor) -> Tensor:
        self.clients[0].grad_from_next_client = gradients
        return torch.zeros(len(gradients), requires_grad=True)

    def backward_gradient(self, of_outputs: Tensor) -> None:
        """Nothing to compute: the gradient is there."""


def test_aijack_itself_finds_the_same_in_what_went_out(rare: Finished) -> None:
    """Its own attack, where it is installed (it builds with cmake and boost): the same area on every batch."""
    from secsplit.vision import torchvision  # noqa: F401  # AIJack imports it, and it loads only through here

    peer = pytest.importorskip("aijack.attack.labelleakage.normattack")
    tensors = exported(rare, "hospital-a")
    guess = GradientNorm().infer(view_of(rare, Threat("t", ("client",))), coins=torch.Generator())
    assert guess.scores is not None
    theirs = peer.attach_normattack_to_splitnn(Replayed, lambda outputs, labels: outputs.sum())()
    for step in tensors["step"].unique():
        mine, rows = guess.step == step, tensors["step"] == step
        truth = rare.truth.label("y", guess.cast[mine], guess.position[mine])
        if 0 < int(truth.sum()) < len(truth):
            found = theirs.attack([(tensors["gradients"][rows], tensors["labels"][rows])])
            assert found == roc_auc_score(truth, guess.scores[mine])


def test_aijacks_split_network_sends_back_what_ours_recorded(rare: Finished) -> None:
    """The same weights and first batch through AIJack's SplitNN: the same gradients, and the same figure."""
    from secsplit.vision import torchvision  # noqa: F401

    peer = pytest.importorskip("aijack.attack.labelleakage.normattack")
    splitnn = pytest.importorskip("aijack.collaborative.splitnn")
    first = next(r for r in rare.transcripts["hospital-a"] if r.kind is Kind.CUT_GRAD)
    cast, position = torch.zeros(60, dtype=torch.int64), rare.order(first.stamp)
    clients = []
    for party, segment in (("hospital-a", "bottom"), ("compute", "top")):
        clients.append(splitnn.SplitNNClient(rare.snapshots(party, segment)[0].make()))
    loss = torch.nn.functional.cross_entropy
    theirs = peer.attach_normattack_to_splitnn(splitnn.SplitNNAPI, loss)(clients, [], None, loss, 1)
    x, y = rare.truth.inputs[0]["x"][position], rare.truth.label("y", cast, position)
    found = theirs.attack([(x, y)])
    torch.testing.assert_close(clients[0].grad_from_next_client, first.tensor, rtol=1e-5, atol=1e-8)
    guess = GradientNorm().infer(view_of(rare, Threat("t", ("client",))), coins=torch.Generator())
    assert guess.scores is not None
    assert found == roc_auc_score(y, guess.scores[guess.step == first.stamp.step])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_there_and_back(rare: Finished, tmp_path: Path, suffix: str) -> None:
    tensors = exported(rare, "compute")
    write(tmp_path / f"a{suffix}", tensors)
    again = read(tmp_path / f"a{suffix}")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_foreign_audit_finds_what_the_audit_of_the_run_finds(tmp_path: Path) -> None:
    """One client, so that the file says all that the run does: the same rows, and the same figures."""
    one = {"hospital": {"role": "client"}, "compute": {"role": "server"}}
    ours = trained(tmp_path / "run", parties=one)
    write(tmp_path / "a.npz", exported(ours, "hospital"))
    attacks = [GradientClustering()]
    theirs = audit_foreign(Foreign.open(tmp_path / "a.npz"), SPEC, attacks=attacks)
    mine = audit(ours, SPEC, attacks=attacks)
    found, wanted = (
        {leak.metric: (leak.value, leak.n) for c in a.cells if c.status == "ran" for leak in c.leakages}
        for a in (theirs, mine)
    )
    assert found.keys() == wanted.keys()
    for metric, (value, n) in wanted.items():
        assert found[metric][1] == n
        assert found[metric][0] == pytest.approx(value, abs=0.03)  # other clues and other restarts of k-means
    assert found["accuracy"][0] > 0.9


def test_records_known_to_the_attacker_count_as_queries(tmp_path: Path) -> None:
    coins = torch.Generator().manual_seed(0)
    x, known = torch.rand(300, 1, 4, 4, generator=coins), torch.rand(200, 1, 4, 4, generator=coins)
    w = torch.randn(16, 24, generator=coins)
    write(
        tmp_path / "a.safetensors",
        {
            "activations": x.flatten(1) @ w, "labels": (x.flatten(1).sum(1) > 8).long(), "inputs": x,
            "aux_inputs": known, "aux_activations": known.flatten(1) @ w, "step": torch.arange(300) // 50,
        },
    )  # fmt: skip
    found = audit_foreign(Foreign.open(tmp_path / "a.safetensors"), SPEC, attacks=[InverseNetwork(), WhiteBox()])
    cells = {(c.attack, c.threat): c for c in found.cells}
    assert cells["inverse-network", "label party"].leakages[0].value > 0.9  # a linear bottom is read back
    assert "never received smashed" in cells["inverse-network", "feature party"].because
    assert cells["white-box", "label party"].status == "not applicable"
    assert "'weights'" in cells["white-box", "label party"].because


def test_every_attack_ran_or_says_why_on_a_foreign_file(rare: Finished, tmp_path: Path) -> None:
    file = tmp_path / "theirs.npz"
    runner = CliRunner()
    if not cli.app.registered_commands:
        cli.load_commands()
    assert rare.folder is not None
    sent = runner.invoke(cli.app, ["export", str(rare.folder), "--party", "hospital-a", "--out", str(file)])
    assert sent.exit_code == 0, sent.output
    assert "gradients: (600, 48) float32" in sent.stdout
    done = runner.invoke(cli.app, ["audit", str(file), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    found = Audit.load(tmp_path / "out")
    failed = [(c.attack, c.threat, c.because) for c in found.cells if c.status == "failed"]
    assert not failed
    ran = {c.attack for c in found.cells if c.status == "ran"}
    assert {"gradient-norm", "gradient-direction", "gradient-clustering", "spectral"} <= ran
    assert "(a)" in done.stdout


LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"labels": LABELS}, "expected 'labels' and 'activations' or 'gradients', got labels"),
        ({"labels": LABELS, "gradients": torch.ones(2, 4)}, "expected 3 rows"),
        ({"labels": LABELS, "gradients": torch.full((3, 4), torch.nan)}, "NaN or infinity"),
        ({"labels": LABELS, "gradients": torch.ones(3, 4), "weights": torch.ones(3)}, "unknown tensor 'weights'"),
        ({"labels": LABELS - 1, "gradients": torch.ones(3, 4)}, "outside of 0"),
        ({"labels": LABELS + 5000, "gradients": torch.ones(3, 4)}, "more than 1000 classes"),
        ({"labels": LABELS, "gradients": torch.ones(3, 4), "position": LABELS + 10**9}, "number the records from 0"),
        ({"labels": LABELS, "gradients": torch.ones(3, 4), "aux_activations": torch.ones(2, 4)}, "as many rows"),
    ],
)
def test_what_makes_no_sense_is_named(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npz", tensors)
    with pytest.raises(DataError, match=said):
        Foreign.open(tmp_path / "a.npz")


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read as plain tensors"):
        Foreign.open(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as plain tensors"):
        Foreign.open(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"ends with \.npz or \.safetensors"):
        read(tmp_path / "c.csv")


def test_attacks_by_clue_run_on_foreign_rows(rare: Finished, tmp_path: Path) -> None:
    write(tmp_path / "a.npz", exported(rare, "hospital-a"))
    found = audit_foreign(Foreign.open(tmp_path / "a.npz"), SPEC, attacks=[ClueDistance()])
    assert [c.status for c in found.cells] == ["ran", "not applicable"]
