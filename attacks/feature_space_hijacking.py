"""Feature-space hijacking: the server teaches the client to send what the server can read.

Pasquini, Ateniese, Bernaschi, "Unleashing the Tiger: Inference Attacks on Split Learning", CCS 2021, arXiv 2012.02670.
An active adversary has public records of the domain. A pilot network takes them to a feature space of its own choice,
and an inverse brings them back; a critic learns to tell the pilot's features from the smashed data, and the client is
sent the critic's gradient in place of the task's. So it learns to imitate the pilot, and the inverse reads what it
sends. Labels, loss and the client's architecture do not matter: only the shape of what it sends.

Where we differ, and why: the pilot is taught when the first message has come, and stays as it is, where the paper
trains all at once for 10,000 steps and more: a target that stands still is imitated within hundreds. It has the
client's architecture where that is known, where the paper does without: what a shallow client cannot compute it cannot
imitate (at a cut after one convolution, error 0.037 for 0.012 with it). Features are read in closed form (`decoder`),
learnt from noisy ones, so that imitations are read too. The critic takes two steps a batch, its gradient penalty weighs
10 for 500, its rate is 5e-4 for 1e-4. After the session the same pilot is made again, from `pilot_seed` and the public
records, so that nothing need be kept but the transcript.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable, drawing
from attacks.decoder import Decoder, fit
from attacks.imagined import side_by_side
from attacks.observed import freshest, latest
from attacks.upstream import Upstream, column_of
from secsplit.defenses import Defense, Incoming, Outgoing
from secsplit.message import Kind
from secsplit.threat import Known, Knows, View
from secsplit.topology import Topology

if TYPE_CHECKING:
    from secsplit.party import Party

log = logging.getLogger(__name__)

WIDTH = 32  # channels of pilot, inverse and critic
HIDDEN = 256  # units of their layers where there are no maps
CHUNK = 500  # records run through the pilot at once
PAIRS = 3000  # public records that features are read by


@dataclass(frozen=True, kw_only=True)
class FeatureSpaceHijacking(Attack):
    """Reconstruct inputs from smashed data of a run in which the adversary returned gradients of its own.

    column: what to report (None: the first column above the edge); edge: which to hijack (None: the shallowest
    received); rows: how many to reconstruct, those seen last; pretraining: steps for the pilot; noise: on the features
    that are learnt to be read; critic_steps: a batch; penalty, lr: the critic's.
    """

    name: ClassVar[str] = "feature-space-hijacking"
    paper: ClassVar[str] = "Pasquini, Ateniese, Bernaschi, CCS 2021, arXiv 2012.02670"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(
        (Need(Kind.SMASHED), Need(Kind.CUT_GRAD, "sent")), frozenset({Knows.AUX}), active=True
    )
    cost: ClassVar[float] = 100.0

    column: str | None = None
    edge: str | None = None
    rows: int = 1000
    pilot_seed: int = 0
    pretraining: int = 300
    batch: int = 64
    noise: float = 0.1
    critic_steps: int = 2
    penalty: float = 10.0
    lr: float = 5e-4

    def corrupt(self, parties: Mapping[str, Party], before: View, *, coins: torch.Generator) -> None:
        """Return other gradients to whoever sends smashed data to these parties. Raises NotApplicable without aux."""
        up = self.hijacked(before.topology, before.roles)
        public(up, before.aux)  # or it is not applicable, and had better say so now
        user = before.topology[up.edge.split("->")[1]].role
        for party in parties.values():
            if party.role == user:
                party.defenses = party.defenses.and_last(Hijacker(self, before, up, coins))

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        del coins  # all that is drawn comes from `pilot_seed`, so that the pilot is the one that was imitated
        up = self.hijacked(view.topology, view.roles)
        column = column_of(up, self.column)
        every = latest(view, Kind.SMASHED, edge=up.edge)
        rows = every.take(freshest(view, every, self.rows))
        pilot = Pilot(self, view, up, rows.values.shape[1:])
        reader = pilot.reader(self.noise)
        read = apart(reader(rows.values.float()), {name: view.shapes[name] for name in up.columns})
        return Guess(
            "input", column, rows.cast, rows.position, rows.step, inputs=read[column], facts={
                "held-out mse of the pilot": reader.held_out_mse, "public records": len(pilot.records),
                "architecture": "known" if pilot.alike else "unknown",
                "rows": "those seen last, of those asked about", "selection": "fixed beforehand",
            },
        )  # fmt: skip

    def hijacked(self, topology: Topology, roles: Iterable[str]) -> Upstream:
        """What is above the edge that is hijacked."""
        mine = set(roles)
        ups = [Upstream(topology, e.name) for e in topology.edges if e.user.role in mine and e.source.role not in mine]
        ups = [up for up in ups if self.edge in (None, up.edge)]
        if not ups:
            wanted = "" if self.edge is None else f" on {self.edge!r}"
            raise NotApplicable(f"{' + '.join(sorted(mine))} is sent no smashed data from outside{wanted}")
        return min(ups, key=lambda up: len(up.segments))


class Pilot:
    """The feature space of the adversary's choice: records -> features, and features -> records.

    It has the client's architecture where that is known, so that the client can imitate it exactly. Made from the
    public records, the shape of the features and the attack's own settings alone, whenever it is made.
    """

    def __init__(self, how: FeatureSpaceHijacking, view: View, up: Upstream, shape: torch.Size) -> None:
        self.coins = torch.Generator().manual_seed(how.pilot_seed)
        self.records = public(up, view.aux)
        self.alike = all(segment.name in view.architecture for segment in up.segments)
        with drawing(self.coins):
            self.features = Imitated(view, up) if self.alike else encoder(self.records.shape[1:], shape)
            inverse = inverse_of(shape, self.records.shape[1:])
        self._teach(how, inverse)
        self.features.eval().requires_grad_(False)

    def reader(self, noise: float) -> Decoder:
        """What reads features, real or imitated: a regression on noisy ones of public records, in closed form."""
        some = self.records[torch.randperm(len(self.records), generator=self.coins)[:PAIRS]]
        with torch.no_grad():
            made = torch.cat([self.features(part) for part in some.split(CHUNK)])
        noisy = made + noise * made.std() * torch.randn(made.shape, generator=self.coins)
        return fit(noisy, some, coins=self.coins)

    def _teach(self, how: FeatureSpaceHijacking, inverse: nn.Module) -> None:
        """Teach features that the inverse can take back to records, noise or no noise."""
        optimizer = torch.optim.Adam([*self.features.parameters(), *inverse.parameters()], 2e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=how.pretraining, pct_start=0.1)
        low, high = float(self.records.min()), float(self.records.max())
        for step in range(how.pretraining):
            x = drawn(self.records, how.batch, self.coins)
            made = self.features(x)
            noise = how.noise * made.detach().std() * torch.randn(made.shape, generator=self.coins)
            loss = mse_loss(low + (high - low) * inverse(made + noise).sigmoid(), x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            if step % 100 == 0:
                log.info("pilot, step %d of %d: error %.4f", step, how.pretraining, loss.item())


class Imitated(nn.Module):
    """The segments above an edge, of their own architecture and with new weights, on records side by side."""

    def __init__(self, view: View, up: Upstream) -> None:
        super().__init__()
        self.up, self.shapes = up, {name: view.shapes[name] for name in up.columns}
        self.nets = nn.ModuleDict({segment.name: view.architecture[segment.name]() for segment in up.segments})
        for layer in self.nets.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()

    def forward(self, records: Tensor) -> Tensor:
        return self.up.run(dict(self.nets.items()), apart(records, self.shapes))


class Hijacker(Defense):
    """Sits where a party's defenses sit, at its door: sees what comes in on one edge, and changes what goes back."""

    def __init__(self, how: FeatureSpaceHijacking, before: View, up: Upstream, coins: torch.Generator) -> None:
        self.how, self.before, self.up = how, before, up
        self.coins = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=coins)))
        self.due: dict[object, Tensor] = {}  # stamp -> the gradient to return
        self.pilot: Pilot | None = None

    def covers(self, kind: Kind, edge: str) -> bool:
        return kind is Kind.CUT_GRAD and edge == self.up.edge

    def incoming(self, came: Incoming) -> Tensor:
        if came.kind is Kind.SMASHED and came.edge == self.up.edge and came.stamp.training:
            self.due[came.stamp] = self.lesson(came.tensor.detach().float()).to(came.tensor.dtype)
        return came.tensor

    def outgoing(self, out: Outgoing) -> Tensor:
        return self.due.pop(out.stamp, out.tensor)

    def lesson(self, smashed: Tensor) -> Tensor:
        """The gradient of the critic's mean verdict on the smashed data, once the critic has learnt from them."""
        if self.pilot is None:
            self.pilot = Pilot(self.how, self.before, self.up, smashed.shape[1:])
            with drawing(self.coins):
                self.critic = critic(smashed.shape[1:])
            self.judge = torch.optim.Adam(self.critic.parameters(), self.how.lr, betas=(0.5, 0.99))
        for _ in range(self.how.critic_steps):
            self.teach(smashed)
        leaf = smashed.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(leaf).mean(), leaf)
        return gradient

    def teach(self, smashed: Tensor) -> None:
        """One WGAN-GP step (Gulrajani et al. 2017): low on the pilot's features, high on the smashed data."""
        assert self.pilot is not None
        with torch.no_grad():
            wanted = self.pilot.features(drawn(self.pilot.records, len(smashed), self.coins))
        share = torch.rand(len(smashed), *[1] * (smashed.ndim - 1), generator=self.coins)
        between = torch.lerp(smashed, wanted, share).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        steep = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        verdicts = self.critic(torch.cat([wanted, smashed]))
        loss = verdicts[: len(wanted)].mean() - verdicts[len(wanted) :].mean() + self.how.penalty * steep
        self.judge.zero_grad(set_to_none=True)
        loss.backward()
        self.judge.step()


# networks of the adversary's own


def encoder(record: torch.Size, features: torch.Size) -> nn.Module:
    """Records (n, *record) -> features (n, *features), normalised and rectified."""
    if len(record) == 3 and len(features) == 3:
        halvings = max(0, min(round(log2(max(1.0, record[i] / features[i]))) for i in (1, 2)))
        return nn.Sequential(
            *_down(record[0], halvings),
            nn.Conv2d(WIDTH if halvings else record[0], features[0], 3, padding=1),
            nn.AdaptiveAvgPool2d(tuple(features[1:])),
            nn.BatchNorm2d(features[0], affine=False),
            nn.ReLU(),
        )
    body = [*_down(record[0], 2)] if len(record) == 3 else [nn.Flatten(), nn.LazyLinear(HIDDEN), nn.ReLU()]
    last = [nn.LazyLinear(features.numel()), nn.BatchNorm1d(features.numel(), affine=False), nn.ReLU()]
    return _fitted(nn.Sequential(*body, nn.Flatten(), *last, nn.Unflatten(1, features)), record)


def inverse_of(features: torch.Size, record: torch.Size) -> nn.Module:
    """Features (n, *features) -> logits of records (n, *record)."""
    if len(record) < 3:
        body = [nn.Flatten(), nn.LazyLinear(HIDDEN), nn.ReLU()]
        return _fitted(nn.Sequential(*body, nn.LazyLinear(record.numel()), nn.Unflatten(1, record)), features)
    small, layers = [-(-n // 4) for n in record[1:]], list[nn.Module]()
    if len(features) == 3:
        small, layers = list(features[1:]), [nn.Conv2d(features[0], 2 * WIDTH, 3, padding=1)]
    else:
        wide = [2 * WIDTH, *small]
        layers = [nn.Flatten(), nn.Linear(features.numel(), prod(wide)), nn.Unflatten(1, wide)]
    doublings = max(0, *(ceil(log2(max(1.0, record[i + 1] / small[i]))) for i in (0, 1)))
    layers += [nn.BatchNorm2d(2 * WIDTH), nn.ReLU()]
    channels = 2 * WIDTH
    for i in range(doublings):
        width = WIDTH if i + 1 < doublings else record[0]
        layers.append(nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(WIDTH), nn.ReLU()] if i + 1 < doublings else []
        channels = width
    layers += [] if doublings else [nn.Conv2d(channels, record[0], 3, padding=1)]
    return nn.Sequential(*layers, nn.Upsample(tuple(record[1:]), mode="bilinear"))


def critic(features: torch.Size) -> nn.Module:
    """Features (n, *features) -> verdicts (n, 1). No normalisation: the penalty is on each row's own slope."""
    body: list[nn.Module] = []
    if len(features) == 3 and min(features[1:]) >= 4:
        body = [
            nn.Conv2d(features[0], WIDTH, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
        ]  # fmt: skip
    ends = [nn.Flatten(), nn.LazyLinear(HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, 1)]
    return _fitted(nn.Sequential(*body, *ends), features)


def _down(channels: int, halvings: int) -> Iterator[nn.Module]:
    for _ in range(halvings):
        yield from (nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        channels = WIDTH


def _fitted(net: nn.Module, taken: torch.Size) -> nn.Module:
    """The network with its lazy layers as wide as what they are given."""
    with torch.no_grad():
        net.eval()(torch.zeros(2, *taken))
    return net.train()


# records


def public(up: Upstream, aux: Known | None) -> Tensor:
    """(n, ...): the public records, all columns above the edge as one. Raises NotApplicable where some are missing."""
    known = aux.inputs if aux is not None else {}
    if missing := [column for column in up.columns if column not in known]:
        raise NotApplicable(f"it needs auxiliary records of column {', '.join(missing)}")
    return side_by_side(up, known).float()


def apart(records: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """column -> (n, *shape): what `public` put side by side."""
    whole = records.ndim > 2
    sizes = [shape[0] if whole else shape.numel() for shape in shapes.values()]
    parts = zip(shapes.items(), records.split(sizes, 1), strict=True)
    return {name: part.reshape(-1, *shape) for (name, shape), part in parts}


def drawn(records: Tensor, n: int, coins: torch.Generator) -> Tensor:
    """(n, ...) of the records, with repetition."""
    return records[torch.randint(len(records), (n,), generator=coins)]
