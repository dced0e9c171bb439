"""Model completion: put a head on one's own trained bottom, and teach it from a few labels.

Fu, Zhang, Ji, Chen, Wu, Guo, Zhou, Liu, Wang, "Label Inference Attacks Against Vertical Federated Learning", USENIX
Security 2022, sections 4.2 and 4.3. The feature party's bottom was trained towards the labels, so a few clues complete
it to a whole model. Passive: it only waits. Active: its optimizer takes longer steps wherever two gradients in a row
agree, so that its bottom learns more of the task than its share.

The paper teaches the head by MixMatch; `head="mixmatch"` does, over the bottom's features and without augmentation, as
the authors do for tables. The default is a logistic regression over features of unit length: on half an image of
Fashion-MNIST, four labels a class, it reaches .77-.80 where MixMatch reaches .76, and tuning the bottom too .60-.70.
Much of what completion shows is that features and labels go together (arXiv 2603.18680): read it against the same clues
on raw features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from attacks.base import Attack, Goal, Guess, Needs, NotApplicable, drawing
from attacks.rows import classes, secret_column, told, untold
from attacks.upstream import Upstream
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

if TYPE_CHECKING:
    from secsplit.party import Party

CHUNK = 1024  # rows run through the bottom at once
RATIO = (1.0, 5.0)  # how much longer a step may get


@dataclass(frozen=True)
class MixMatch:
    """The authors' settings: sharpening, mixing, weight of the unlabelled, averaging of weights, Adam, batch size."""

    temperature: float = 0.8
    alpha: float = 0.75
    unlabelled: float = 50.0
    average: float = 0.999
    lr: float = 2e-3
    batch: int = 16


MIXMATCH = MixMatch()


@dataclass(frozen=True, kw_only=True)
class ModelCompletion(Attack):
    """Guess the label of every own record from the own bottom's features, with a head taught by the clues.

    column: the label column (None: the first secret one); head: how it is taught; iterations: of MixMatch.
    """

    name: ClassVar[str] = "model-completion"
    paper: ClassVar[str] = "Fu et al., USENIX Security 2022"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(knows=frozenset({Knows.CLUES}), own_records=True, secret_labels=True)
    cost: ClassVar[float] = 5.0

    column: str | None = None
    head: Literal["logistic", "mixmatch"] = "logistic"
    iterations: int = 3000

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        reason = super().why_not(topology, threat)
        if reason is None and not own_edges(topology, threat.who):
            return f"{' + '.join(threat.who)} has no segment that its own records alone go into"
        return reason

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        count = classes(view, column)
        features, cast, position = own_features(view)
        label = told(view.clues, column, cast, position)
        rows = label >= 0
        if len(label[rows].unique()) < 2:
            raise NotApplicable(f"the clues about own records name {len(label[rows].unique())} classes; two are needed")
        if self.head == "logistic":
            scores = logistic(normalize(features, dim=1), rows, label, count)
        else:
            scores = _mixmatch(features, rows, label, count, self.iterations, coins)
        guess = Guess(
            "label",
            column,
            cast,
            position,
            step=torch.full_like(position, -1),
            scores=scores,
            labels=scores.argmax(1),
            facts={"labels known": int(rows.sum()), "features": features.shape[1]},
        )
        return untold(guess, view.clues)


@dataclass(frozen=True, kw_only=True)
class ActiveCompletion(ModelCompletion):
    """The same after a run in which the adversary's own optimizer was the malicious one.

    gamma: how strongly a step is lengthened where the gradient agrees with the last one.
    """

    name: ClassVar[str] = "active-completion"
    needs: ClassVar[Needs] = Needs(knows=frozenset({Knows.CLUES}), active=True, own_records=True, secret_labels=True)

    gamma: float = 1.0

    def corrupt(self, parties: Mapping[str, Party], before: View, *, coins: torch.Generator) -> None:
        """Lengthen the steps of the adversary's own bottoms; nothing else of its parties changes."""
        for party in parties.values():
            bottoms = {edge.split("->")[0] for edge in own_edges(party.topology, [party.role])}
            for name, optimizer in party.optimizers.items():
                if name in bottoms:
                    optimizer.register_step_pre_hook(Lengthened(self.gamma))


class Lengthened:
    """Before each step of an optimizer, every entry of a gradient times 1 + gamma g_t / g_{t-1}, kept within 1 to 5.

    The paper builds it into SGD; as a hook it serves any optimizer. Adam would undo a constant factor, but not one that
    differs from step to step and from entry to entry.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.last: dict[nn.Parameter, Tensor] = {}

    def __call__(self, optimizer: torch.optim.Optimizer, args: object, options: object) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p in self.last:
                    p.grad.mul_((1 + self.gamma * p.grad / (self.last[p] + 1e-7)).clamp(*RATIO))
                self.last[p] = p.grad.clone()


def own_edges(topology: Topology, roles: Iterable[str]) -> tuple[str, ...]:
    """The edges over the coalition's border whose every segment above it holds itself."""
    held = set(roles)
    return tuple(
        edge.name
        for edge in topology.edges
        if edge.source.role in held
        and edge.user.role not in held
        and all(segment.role in held for segment in Upstream(topology, edge.name).segments)
    )


def own_features(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """(n, d) what the own last bottoms make of every own record, its cast (n,) and its position (n,)."""
    parts = []
    for cast, own in view.own.items():
        ups = [Upstream(view.topology, edge) for edge in own_edges(view.topology, view.roles)]
        ups = [up for up in ups if all(column in own.inputs for column in up.columns)]
        if ups and len(own.position):
            made = torch.cat([_through(view, up, cast) for up in ups], dim=1)
            parts.append((made, own.cast, own.position))
    if not parts:
        raise NotApplicable(f"{' + '.join(view.roles)} holds no records that go into a segment of its own")
    features, casts, positions = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(casts), torch.cat(positions)


def logistic(features: Tensor, known: Tensor, label: Tensor, count: int) -> Tensor:
    """(n, classes) log probabilities by logistic regression on the known rows; classes without one get the least."""
    fitted = LogisticRegression(C=10.0, max_iter=500).fit(features[known].numpy(), label[known].numpy())
    made = torch.from_numpy(fitted.predict_log_proba(features.numpy())).float()
    scores = torch.full((len(features), count), float(made.min()))
    scores[:, torch.from_numpy(fitted.classes_).long()] = made
    return scores


def _through(view: View, up: Upstream, cast: int) -> Tensor:
    """(n, d) what crosses an own edge for all own records of a cast."""
    networks = {}
    for segment in up.segments:
        snapshots = view.models.get(f"{segment.name}@{cast}") or view.models.get(segment.name, ())
        if not snapshots:
            raise NotApplicable(f"no weights of the own segment {segment.name!r} were kept")
        networks[segment.name] = snapshots[-1].make().eval().requires_grad_(False)
    columns = view.own[cast].inputs
    chunks = torch.arange(len(view.own[cast].position)).split(CHUNK)
    return torch.cat(
        [up.run(networks, {c: columns[c][rows] for c in up.columns}).flatten(1).float() for rows in chunks]
    )


def _mixmatch(
    features: Tensor, known: Tensor, label: Tensor, count: int, iterations: int, coins: torch.Generator
) -> Tensor:
    """(n, classes) logits of a linear head taught by MixMatch (Berthelot et al. 2019, arXiv 1905.02249)."""
    x = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    y = one_hot(label.clamp_min(0), count).float()
    labelled, batch = known.nonzero().flatten(), MIXMATCH.batch
    with drawing(coins):
        head = nn.Linear(x.shape[1], count)
    average = copy.deepcopy(head).requires_grad_(False)
    optimizer = torch.optim.Adam(head.parameters(), lr=MIXMATCH.lr)
    for step in range(iterations):
        sure = labelled[torch.randint(len(labelled), (batch,), generator=coins)]
        unsure = torch.randint(len(x), (batch,), generator=coins)
        with torch.no_grad():
            guess = normalize(head(x[unsure]).softmax(1) ** (1 / MIXMATCH.temperature), p=1, dim=1)
        inputs, targets = torch.cat([x[sure], x[unsure]]), torch.cat([y[sure], guess])
        share, other = _beta(MIXMATCH.alpha, coins), torch.randperm(2 * batch, generator=coins)
        inputs, targets = (share * t + (1 - share) * t[other] for t in (inputs, targets))
        made = head(inputs)
        supervised = cross_entropy(made[:batch], targets[:batch])
        consistent = (made[batch:].softmax(1) - targets[batch:]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(supervised + MIXMATCH.unlabelled * step / iterations * consistent)
        optimizer.step()
        for mean, now in zip(average.parameters(), head.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - MIXMATCH.average)
    made = average(x)
    return torch.as_tensor(made)


def _beta(alpha: float, coins: torch.Generator) -> Tensor:
    """() a draw of Beta(alpha, alpha), the larger side: the share of the row itself in a mixture."""
    a, b = torch._standard_gamma(torch.full((2,), alpha), generator=coins)
    share = a / (a + b)
    return torch.maximum(share, 1 - share)
