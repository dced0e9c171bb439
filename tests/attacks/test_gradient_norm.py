import pytest
import torch

from attacks.base import NotApplicable
from attacks.gradient_norm import GradientDirection, GradientHint, GradientNorm
from secsplit.datasets import Dataset
from secsplit.message import Kind
from secsplit.threat import Knows
from secsplit.topologies import multi_hop, vanilla, vertical
from tests.attacks.figures import leak_aucs
from tests.attacks.victims import Victim, binary, fashion, mlp, mnistnet, train

CLUES = frozenset({Knows.CLUES})


def test_one_known_positive_gives_away_every_label(one_in_ten: Victim, coins: torch.Generator):
    view = one_in_ten.view("client", knows=CLUES)
    for attack in (GradientDirection(), GradientHint()):
        areas = leak_aucs(one_in_ten, attack.infer(view, coins=coins))
        assert areas.median() >= 0.99
        assert areas.quantile(0.05) >= 0.95


def test_norm_finds_the_rare_class_without_any_clue(one_in_ten: Victim, coins: torch.Generator):
    areas = leak_aucs(one_in_ten, GradientNorm().infer(one_in_ten.view("client"), coins=coins))
    assert areas.median() >= 0.85


def test_scores_are_the_norms_of_the_rows_gradients(one_in_ten: Victim, coins: torch.Generator):
    guess = GradientNorm(batches=3).infer(one_in_ten.view("client"), coins=coins)
    record = next(one_in_ten.view("client").records(Kind.CUT_GRAD))
    assert guess.scores is not None
    torch.testing.assert_close(guess.scores[:128], record.tensor.norm(dim=1))
    assert guess.position[:128].tolist() == one_in_ten.orders[0].tolist()
    assert len(guess.step.unique()) == 3


def test_balanced_patients_norm_is_blind_where_direction_is_not(patients: Dataset, coins: torch.Generator):
    """The false all-clear of a tool that ships the norm alone: breast cancer, 37% positive."""
    directions, norms = [], []
    for seed in range(5):
        models = {"bottom": mlp(30, 16, last_relu=True, seed=seed), "top": mlp(16, 1, seed=seed)}
        topology = vanilla(labels="server", loss="binary_cross_entropy")
        victim = train(topology, patients, models, epochs=15, batch=32, seed=seed)
        view = victim.view("client", knows=CLUES)
        norms.append(leak_aucs(victim, GradientNorm().infer(view, coins=coins)).median())
        directions.append(leak_aucs(victim, GradientDirection().infer(view, coins=coins)).median())
    assert 0.35 <= torch.stack(norms).median() <= 0.65
    assert min(directions) >= 0.99


def test_the_owner_of_the_labels_is_no_adversary(one_in_ten: Victim):
    assert GradientNorm().why_not(one_in_ten.topology, one_in_ten.threat("server")) == "server holds every label itself"
    sends = vanilla(labels="client")
    assert GradientNorm().why_not(sends, one_in_ten.threat("client")) == "client holds every label itself"
    assert "never received" in str(GradientNorm().why_not(sends, one_in_ten.threat("server")))
    assert "needs 'clues'" in str(GradientHint().why_not(vertical(), one_in_ten.threat("radiology")))
    assert GradientHint().why_not(vertical(), one_in_ten.threat("radiology", knows=CLUES)) is None


def test_a_colluding_hop_gives_the_gradient_nearest_to_the_loss(one_in_ten: Victim, coins: torch.Generator):
    models = {"hop-1": torch.nn.Flatten(), "hop-2": mlp(64, 32, last_relu=True), "top": mlp(32, 2)}
    victim = train(multi_hop(hops=2), one_in_ten.data, models, batch=128)
    both, last = (victim.view(*roles) for roles in (("client-1", "client-2"), ("client-2",)))
    scores = [GradientNorm().infer(view, coins=coins).scores for view in (both, last)]
    assert torch.equal(*scores)


def test_more_than_two_classes_or_no_clue_seen_is_said(ten_classes: Victim, one_in_ten: Victim, coins: torch.Generator):
    with pytest.raises(NotApplicable, match="10 classes; this attack needs 2"):
        GradientNorm().infer(ten_classes.view("client"), coins=coins)
    with pytest.raises(NotApplicable, match="no positive clue"):
        GradientDirection().infer(one_in_ten.view("client"), coins=coins)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_published_strength_on_fashion_mnist(seed: int, coins: torch.Generator):
    """Set-up S, class 0 against the rest, 10% positives, after pool2: direction >= .99, norm >= .90."""
    bottom, top = mnistnet(6, classes=2, seed=seed)
    data = binary(fashion(), 0, share=0.1, n=20_000, seed=seed)
    victim = train(vanilla(labels="server"), data, {"bottom": bottom, "top": top}, epochs=3, batch=256, seed=seed)
    view = victim.view("client", knows=CLUES)
    assert leak_aucs(victim, GradientDirection().infer(view, coins=coins)).median() >= 0.99
    assert leak_aucs(victim, GradientHint().infer(view, coins=coins)).median() >= 0.99
    assert leak_aucs(victim, GradientNorm().infer(view, coins=coins)).median() >= 0.90
