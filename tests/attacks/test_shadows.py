"""Stacked networks learn what each would have learnt alone; the ratio is that of two normal densities."""

import pytest
import torch
from torch import Tensor, nn

from attacks.membership import likelihood_ratio
from attacks.shadows import Shadows, Whole, confidence, trained
from secsplit.topologies import vanilla


def nets(norm: bool = False) -> list[Whole]:
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        extra = [nn.BatchNorm1d(8)] if norm else []
        bottom = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), *extra, nn.ReLU())
        made.append(Whole(vanilla(), {"bottom": bottom, "top": nn.Linear(8, 3)}))
    return made


def data() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    coins = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=coins), torch.randint(3, (60,), generator=coins)
    return {"x": x}, {"y": y}, torch.rand(3, 60, generator=coins).argsort(1)[:, :30]


def fitted(made: list[Whole], members: Tensor, epochs: int = 4) -> Shadows:
    x, y, _ = data()
    return trained(
        made, x, y, members, epochs=epochs, batch=10, lr=1e-2, enough=lambda _: False,
        coins=torch.Generator().manual_seed(1),
    )  # fmt: skip


@pytest.mark.parametrize("norm", [False, True])
def test_each_of_the_stack_is_trained_as_if_alone(norm: bool):
    x, y, members = data()
    together = fitted(nets(norm), members).confidences(x, y)
    orders = torch.Generator().manual_seed(1)
    rows = [members.gather(1, torch.rand(3, 30, generator=orders).argsort(1)) for _ in range(4)]
    for i, net in enumerate(nets(norm)):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for epoch in rows:
            for part in epoch[i].split(10):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net({"x": x["x"][part]})[0], y["y"][part]).backward()
                optimizer.step()
        alone = confidence(vanilla().objectives, net.eval()(x), y)
        torch.testing.assert_close(together[i], alone, atol=1e-3, rtol=1e-3)


def test_confidence_is_the_log_odds_of_the_label():
    score = torch.tensor([[2.0, 1.0, 0.5]])
    p = score.double().softmax(1)[0, 1]
    found = confidence(vanilla().objectives, [score], {"y": torch.tensor([1])})
    torch.testing.assert_close(found, torch.stack([(p / (1 - p)).log()]))


def test_the_ratio_is_that_of_two_normal_densities():
    shadow = torch.tensor([[3.0, 2.0], [5.0, 4.0], [1.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
    inside = torch.tensor([[True, True], [True, True], [False, False], [False, False]])
    victim = torch.tensor([4.0, 0.0], dtype=torch.float64)
    member = torch.distributions.Normal(torch.tensor([4.0, 3.0]).double(), 1.0)
    other = torch.distributions.Normal(torch.tensor([1.0, -1.0]).double(), 0.5**0.5)
    expected = member.log_prob(victim) - other.log_prob(victim)
    torch.testing.assert_close(likelihood_ratio(victim, shadow, inside), expected)
