"""Pulling the messages of a simulated client towards those of the real one: what the family of such attacks differs in.

Multi-kernel maximum mean discrepancy (Gretton et al. 2012, as FORA uses it: Xu et al., CVPR 2024, arXiv 2405.04115) and
a discriminator (SDAR: Zhu et al., NDSS 2025, arXiv 2310.10483). Both compare sets of messages, never rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # FORA's 2^-3 ... 2^1, in units of the mean squared distance


def mk_mmd(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased squared discrepancy between two sets of messages (n, ...) and (m, ...); 0 where they are alike."""
    n, m = len(a), len(b)
    both = torch.cat([a.flatten(1), b.flatten(1)])
    squares = both.square().sum(1)
    distances = (squares[:, None] + squares - 2 * both @ both.T).clamp_min(0)
    unit = distances.detach().mean().clamp_min(1e-12)
    kernel = torch.stack([torch.exp(distances / (-2 * width * unit)) for width in BANDWIDTHS]).sum(0)
    kernel = kernel - torch.diag(kernel.diagonal())
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return within - 2 * kernel[:n, n:].mean()


class Discriminator:
    """Tells real messages from simulated ones, and learns to while the simulator learns to deceive it."""

    def __init__(self, width: int, *, lr: float, hidden: int = 256) -> None:
        self.net = nn.Sequential(
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )  # fmt: skip
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr, betas=(0.5, 0.999))

    def deceived(self, simulated: Tensor, real: Tensor) -> Tensor:
        """The simulator's loss; the discriminator takes a step of its own first."""
        simulated, real = simulated.flatten(1), real.flatten(1)
        self.optimizer.zero_grad(set_to_none=True)
        said, of_real = self.net(simulated.detach()), self.net(real)
        (bce(said, torch.zeros_like(said)) + bce(of_real, torch.ones_like(of_real))).backward()
        self.optimizer.step()
        said = self.net(simulated)
        return bce(said, torch.ones_like(said))
