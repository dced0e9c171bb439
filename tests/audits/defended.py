"""Runs of set-up S with defenses, through the project's own parties, and what an inverse network then reads back.

Set-up S: MnistNet on Fashion-MNIST, cut after pool1 (3), pool2 (6), fc120 (8) or fc84 (10); private records from the
train split, the attacker's from the test split; 1000 private images judged in a pool of 5000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks import decoder
from audits import images
from secsplit.datasets import Dataset
from secsplit.defenses import Defense, Defenses, Noise, Outgoing, build
from secsplit.drive import simulate
from secsplit.message import Kind, Stamp
from secsplit.party import Party, Shard
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.topologies import named
from secsplit.transcript import Transcript
from tests.attacks.victims import fashion, mnistnet, part

EDGE = "bottom->top"
POOL, JUDGED = 5000, 1000


@dataclass
class Defended:
    """A finished run, with the truth: bottom and top, the parties, what the client was sent and sent, its data."""

    data: Dataset
    bottom: nn.Module
    top: nn.Module
    parties: Mapping[str, Party]
    transcript: Transcript  # of the client

    @property
    def defenses(self) -> tuple[Defense, ...]:
        return tuple(self.parties["client"].defenses)

    @torch.no_grad()
    def sent(self, x: Tensor, *, draw: int = 0) -> Tensor:
        """(n, ...) what the client would send for these images, in evaluation mode; another draw, other noise."""
        chunks = []
        for i, images_ in enumerate(x.split(500)):
            rows = torch.arange(len(images_))
            stamp = Stamp(10**6 + draw, i, 0, 0, False)
            out = Outgoing(Kind.SMASHED, EDGE, stamp, self.bottom(images_), None, rows, "server")
            chunks.append(self.parties["client"].defenses.outgoing(out))
        return torch.cat(chunks)

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the test records."""
        answers = self.top(self.sent(self.data.test.inputs["x"], draw=999))
        return float((answers.argmax(1) == self.data.test.labels["y"]).double().mean())

    def inverted(self, *, draws: int = 1, aux: int = 5000) -> images.Fidelity:
        """The inverse network, fitted on defended messages, reading messages averaged over so many draws."""
        known = self.data.test.inputs["x"][:aux]
        messages = torch.stack([self.sent(known, draw=k) for k in range(draws)]).mean(0)
        fitted = decoder.fit(messages, known, coins=torch.Generator().manual_seed(0))
        private = self.data.train.inputs["x"][:POOL]
        seen = torch.stack([self.sent(private[:JUDGED], draw=100 + k) for k in range(draws)]).mean(0)
        self.read = fitted(seen)
        return images.fidelity(self.read, private[:JUDGED])

    def reidentified(self) -> float:
        """Share of the last reconstructions whose nearest image in the pool is the true one."""
        pool = self.data.train.inputs["x"][:POOL]
        return float(images.reidentified(self.read, pool, torch.arange(JUDGED)).double().mean())


def train(
    defenses: Sequence[Mapping[str, Any]] = (),
    *,
    cut: int = 6,
    data: Dataset | None = None,
    n: int = 20_000,
    epochs: int = 2,
    batch: int = 64,
    labels: str = "client",
    seed: int = 0,
    lr: float = 1e-3,
) -> Defended:
    """Train through the project's parties, simulated; seeds everything, the noise of the defenses too."""
    data = data or part(fashion(), torch.arange(n))
    run = Run.of(
        parse(
            {
                "topology": {"name": "vanilla", "labels": labels},
                "train": {"epochs": epochs, "batch_size": batch, "seed": seed, "evaluate_every": 0, "record": "off"},
                "defenses": list(defenses),
                "parties": {"client": {"role": "client"}, "server": {"role": "server"}},
            }
        ),
        named("vanilla", labels=labels),
    )
    bottom, top = mnistnet(cut, classes=data.classes["y"], seed=seed)
    splits = {"train": data.train, "test": data.test}
    held = {
        "client": ({"bottom": bottom}, {s: {"x": r.inputs["x"]} for s, r in splits.items()}),
        "server": ({"top": top}, {s: {} for s in splits}),
    }
    parties = {}
    for name, (modules, inputs) in held.items():
        mine = {s: {"y": r.labels["y"]} if labels == name else {} for s, r in splits.items()}
        shield: Defenses = build(run.file.defenses, run.topology, name, _noise(name, seed), data.classes)
        make = partial(torch.optim.Adam, lr=lr)
        parties[name] = Party(run, name, modules, {0: Shard(inputs, mine)}, make, shield)  # type: ignore[arg-type]
    transcript = Transcript("client")
    simulate(parties, transcripts={"client": transcript})
    bottom = parties["client"].modules["bottom"].eval()
    return Defended(data, bottom, parties["server"].modules["top"].eval(), parties, transcript)


def _noise(name: str, seed: int) -> Noise:
    return Noise.predictable_for_testing_only(2 * seed + (name == "server"))
