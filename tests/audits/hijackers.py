"""Servers that teach a client its task, something else, or half of each: for tests of what notices them.

The hijacker is that of Pasquini, Ateniese, Bernaschi, CCS 2021 (arXiv 2012.02670), as the client meets it: the
gradients of a critic that pulls smashed data towards a pilot's feature space (WGAN-GP, two critic steps a batch),
labels unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.attacks.victims import fashion, mnistnet

Server = Literal["honest", "hijacker", "half"]


def gradients(
    server: Server, *, steps: int, seed: int, cut: int = 6, batch: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """(batch, ...) what such a server sends back for each batch, and the batch's labels; the client learns from it."""
    coins = torch.Generator().manual_seed(seed)
    data = fashion()
    bottom, top = mnistnet(cut, seed=seed)
    pilot, _ = mnistnet(cut, seed=1000 + seed)
    torch.manual_seed(seed)
    critic = nn.Sequential(
        nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )
    with torch.no_grad():
        critic(bottom(data.train.inputs["x"][:2]))
    client, task = (torch.optim.Adam(m.parameters(), 1e-3) for m in (bottom, top))
    judge = torch.optim.Adam(critic.parameters(), 5e-4, betas=(0.5, 0.99))
    for _ in range(steps):
        rows = torch.randint(len(data.train), (batch,), generator=coins)
        x, y = data.train.inputs["x"][rows], data.train.labels["y"][rows]
        public = data.test.inputs["x"][torch.randint(len(data.test), (batch,), generator=coins)]
        h = bottom(x)
        leaf = h.detach().requires_grad_()
        parts = []
        if server != "hijacker":
            task.zero_grad()
            parts.append(F.cross_entropy(top(leaf), y))
        if server != "honest":
            for _ in range(2):
                _teach(critic, judge, pilot(public).detach(), h.detach(), coins)
            parts.append(critic(leaf).mean())
        loss = torch.stack(parts).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if server != "hijacker":
            task.step()
        assert leaf.grad is not None
        yield leaf.grad, y
        client.zero_grad()
        h.backward(leaf.grad)  # type: ignore[no-untyped-call]
        client.step()


def _teach(
    critic: nn.Module, judge: torch.optim.Optimizer, wanted: Tensor, seen: Tensor, coins: torch.Generator
) -> None:
    """One WGAN-GP step: the critic is low on the pilot's features and high on the client's."""
    share = torch.rand(len(seen), *[1] * (seen.ndim - 1), generator=coins)
    between = (share * wanted + (1 - share) * seen).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    judge.zero_grad()
    (critic(wanted).mean() - critic(seen).mean() + 10 * penalty).backward()
    judge.step()
