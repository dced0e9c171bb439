"""Gradient inversion: records from the gradients, or the weights, that a client gives to be averaged.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935 (DLG: search for records whose gradient is
the one that was sent); Zhao, Mopuri, Bilen 2020, arXiv 2001.02610 (iDLG: the label from the last layer's gradient);
Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020, arXiv 2003.14053 (the angle between gradients, signed Adam, total
variation); Yin et al., CVPR 2021, arXiv 2104.07586 (GradInversion: the labels of a batch); Phong et al. 2018 (a linear
first layer: the record is its weights' gradient over its bias's, exactly).

It is the attack on what has no cut: federated averaging, where the difference between the weights sent out and those
that came back is the gradient of what was learnt between, and large-batch SGD, where gradients are sent themselves. The
adversary averages, so it has the weights over time. Where one step of Adam was taken, all entries have moved alike and
only signs are told apart; those are matched then.

Where we differ, and why: many victims are attacked at once, each with its own weights and gradient (torch.func.vmap),
where the papers loop over them; several local steps count as one, of all their records. A linear layer's gradient is a
sum of as many products as there are records, so what they brought to it lies in what its rows span: the search keeps to
that, and of one record it is known exactly, whereupon auxiliary records teach to read it, where there are any. Of more
than one record it is not known which is which: the guess is up to a permutation within its step.

What it does not do: the search finds a network of convolutions and poolings hard (MnistNet, one record, no auxiliary
ones: squared error about half the mean image's), and batches of them harder. That such a search failed says little.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, vmap
from torch.nn.functional import cosine_similarity, cross_entropy

from attacks import decoder
from attacks.base import Attack, Goal, Guess, Needs, NotApplicable
from attacks.upstream import Upstream
from attacks.white_box import total_variation
from secsplit.errors import RunError
from secsplit.message import Kind, Stamp
from secsplit.threat import Knows, Snapshot, Threat, View
from secsplit.topology import Objective, Topology
from secsplit.transcript import Record

log = logging.getLogger(__name__)

Named = dict[str, Tensor]  # "segment.parameter" -> tensor
PAIRS = 2000  # auxiliary records that what reached a linear layer is read by
ALIKE = 0.05  # entries whose lengths vary by less, relatively, tell signs alone


@dataclass(frozen=True)
class Update:
    """What one client gave after one or several batches: position (n,) of its records, the weights before, the descent.

    gradient: up to a positive factor; signs: whether only the signs of its entries can be told.
    """

    cast: int
    step: int
    position: Tensor
    weights: Named
    gradient: Named
    signs: bool


@dataclass(frozen=True, kw_only=True)
class GradientInversion(Attack):
    """Reconstruct the records of small batches from the updates that clients gave to be averaged.

    column: the data column (None: the only one); most: records that an update may rest on at most; victims: updates at
    most, the earliest, whose gradients are the largest; steps, lr: of the search; tv: weight of the total variation;
    span: weight of what lies outside of what the linear layers' gradients span.
    """

    name: ClassVar[str] = "gradient-inversion"
    paper: ClassVar[str] = (
        "DLG, arXiv 1906.08935; iDLG, arXiv 2001.02610; Geiping et al., NeurIPS 2020, arXiv 2003.14053"
    )
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(knows=frozenset({Knows.WEIGHTS}))
    cost: ClassVar[float] = 30.0

    column: str | None = None
    most: int = 8
    victims: int = 16
    steps: int = 800
    lr: float = 0.1
    tv: float = 0.1
    span: float = 0.1

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        reason = super().why_not(topology, threat)
        if reason is None and not any(_whole(topology, o, threat.who) for o in topology.objectives):
            return f"no other party holds a whole network in topology {topology.name!r}: there is a cut"
        return reason

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        objective = next((o for o in view.topology.objectives if _whole(view.topology, o, view.roles)), None)
        if objective is None:
            raise NotApplicable("no other party holds a whole network: there is a cut")
        classes = view.classes.get(objective.target, 0)
        if not classes or objective.loss != "cross_entropy":
            raise NotApplicable(f"labels {objective.target!r} are not classes, and could not be told from a gradient")
        up = Upstream(view.topology, objective.segment)
        column = self.column or up.columns[0]
        found = [u for u in updates(view, up) if 0 < len(u.position) <= self.most]
        if not found:
            raise NotApplicable(f"it was given no update that rests on {self.most} records or fewer")
        size = len(found[0].position)
        found = [u for u in found if len(u.position) == size][: self.victims]
        nets = Networks(view, up, objective)
        labels = torch.stack([told_labels(u, nets, classes, view.shapes, coins) for u in found])
        inputs = told_records(found, nets, view, coins) if size == 1 else None
        steps, apart = 0, 0.0
        if inputs is None:
            begun = {name: start(labels.shape, view.shapes[name], coins) for name in up.columns}
            inputs, apart, steps = self.search(found, labels, nets, begun)
        cast, step = (
            torch.tensor([getattr(u, name) for u in found]).repeat_interleave(size) for name in ("cast", "step")
        )
        return Guess(
            "input", column, cast, torch.cat([u.position for u in found]), step, inputs=inputs[column].flatten(0, 1),
            up_to_permutation=size > 1, facts={
                "updates": len(found), "records an update": size, "steps": steps, "angle left": apart,
                "how": "searched for" if steps else "told by the first linear layer",
                "matched": "signs" if found[0].signs else "gradients",
                "labels": "read off the last layer", "selection": "fixed beforehand; the earliest updates",
            },
        )  # fmt: skip

    def search(
        self,
        found: Sequence[Update],
        labels: Tensor,
        nets: Networks,
        xs: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], float, int]:
        """(column -> (updates, records, ...), mean of 1 - cosine that is left, steps taken)."""
        weights, wanted = stacked([u.weights for u in found]), stacked([u.gradient for u in found])
        signs = torch.tensor([u.signs for u in found])
        optimizer = torch.optim.Adam(xs.values(), self.lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        gradients = vmap(grad(nets.loss, has_aux=True), in_dims=(0, 0, 0))
        bases = nets.bases(wanted, labels.shape[1])
        apart, step = torch.zeros(()), 0
        for step in range(1, self.steps + 1):
            made, taken = gradients(weights, xs, labels)
            apart = angles(made, wanted, signs)
            beside = outside(taken, bases)
            smooth = torch.stack([total_variation(x.flatten(0, 1)) for x in xs.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            (apart.sum() + self.span * beside.sum() + self.tv * smooth).backward()
            for x in xs.values():
                if x.grad is not None:
                    x.grad.sign_()
            optimizer.step()
            rate.step()
            with torch.no_grad():
                for x in xs.values():
                    if x.ndim == 5:
                        x.clamp_(0, 1)
            if step % 100 == 0:
                log.info("step %d of %d: 1 - cosine %.5f", step, self.steps, apart.mean().item())
        return {name: x.detach() for name, x in xs.items()}, apart.mean().item(), step


class Networks:
    """The whole network as a function of its weights."""

    def __init__(self, view: View, up: Upstream, objective: Objective) -> None:
        self.up, self.objective = up, objective
        self.modules: dict[str, nn.Module] = {}
        for segment in up.segments:
            net = view.weights[segment.name]().eval()
            self.modules[segment.name] = replace_all_batch_norm_modules_(
                net
            )  # a client's batch is normalised by itself

    def output(self, weights: Named, columns: Mapping[str, Tensor]) -> Tensor:
        """(n, classes): the network with these weights."""

        def of(segment: str) -> Mapping[str, Tensor]:
            prefix = f"{segment}."
            return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}

        nets = {
            name: lambda *args, name=name, net=net: functional_call(net, dict(of(name)), args)
            for name, net in self.modules.items()
        }
        return self.up.run(nets, columns)

    def loss(self, weights: Named, columns: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of these records, and what each linear layer took: (n, features)."""
        taken: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: taken.update({name: args[0]}))
            for name, layer in self.linear.items()
        ]
        loss = cross_entropy(self.output(weights, columns), labels)
        for hook in hooks:
            hook.remove()
        return loss, taken

    @property
    def linear(self) -> dict[str, nn.Linear]:
        """The name of a linear layer's weight -> the layer."""
        return {
            f"{segment}.{name}.weight": layer
            for segment, net in self.modules.items()
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Linear)
        }

    def bases(self, gradients: Named, n: int) -> dict[str, Tensor]:
        """(updates, features, n) of each linear layer wider than n: what the rows of its weight's gradient span.

        Such a gradient is the sum of n products, each with what one record brought to the layer, so that is within.
        """
        return {
            name: torch.linalg.svd(gradients[name], full_matrices=False).Vh[:, :n].transpose(1, 2)
            for name, layer in self.linear.items()
            if min(layer.in_features, layer.out_features) > n
        }

    @property
    def learning(self) -> tuple[str, ...]:
        return tuple(
            f"{s}.{n}" for s, net in self.modules.items() for n, p in net.named_parameters() if p.requires_grad
        )


# what was given, and what it rests on


def updates(view: View, up: Upstream) -> Iterator[Update]:
    """What clients gave first after every moment at which the weights are known, in order of time."""
    names = [segment.name for segment in up.segments]
    if missing := [name for name in names if name not in view.history]:
        raise NotApplicable(f"it does not know the weights of {', '.join(missing)} over time")
    given = sorted(view.records(Kind.WEIGHTS), key=lambda r: (r.stamp.step, r.stamp.cast))
    moments = sorted({snapshot.step for snapshot in view.history[names[0]]})
    for moment in moments:
        first = next((r.stamp.step for r in given if r.stamp.step > moment), None)
        before = {
            f"{name}.{key}": tensor
            for name in names
            for key, tensor in _at(view.history[name], moment).make().named_parameters()
        }
        for record in given if first is not None else ():
            if record.stamp.step == first and set(before) <= set(record.tensors):
                yield _update(view, record, moment, {name: p.detach() for name, p in before.items()})


def _update(view: View, record: Record, moment: int, before: Named) -> Update:
    came = {name: record.tensors[name] for name in before}
    if cosine_similarity(_flat(came), _flat(before), dim=0) > 0.5:  # weights, not a gradient
        came = {name: before[name] - tensor for name, tensor in came.items()}
    lengths = _flat(came).abs()
    lengths = lengths[lengths > 0]
    signs = bool(len(lengths) and lengths.std() < ALIKE * lengths.mean())
    stamp = record.stamp
    rows = [_rows(view, Stamp(step, 0, stamp.epoch, stamp.cast)) for step in range(moment + 1, stamp.step + 1)]
    position = torch.cat([torch.empty(0, dtype=torch.int64), *rows])
    return Update(stamp.cast, stamp.step, position, before, came, signs)


def _rows(view: View, stamp: Stamp) -> Tensor:
    """(n,) positions of the batch that this cast took then; none where it took none."""
    try:
        return view.order(stamp)
    except RunError:
        return torch.empty(0, dtype=torch.int64)


def _at(snapshots: Sequence[Snapshot], step: int) -> Snapshot:
    return next(snapshot for snapshot in snapshots if snapshot.step == step)


def _whole(topology: Topology, objective: Objective, roles: Sequence[str]) -> bool:
    """Whether one role that is not the adversary's holds all that leads to the objective, and its labels."""
    above = {segment.role for segment in Upstream(topology, objective.segment).segments}
    return above == {objective.holder} == {objective.at} and not above & set(roles)


# what a gradient tells without a search


def told_labels(
    update: Update, nets: Networks, classes: int, shapes: Mapping[str, torch.Size], coins: torch.Generator
) -> Tensor:
    """(n,): the labels of the batch in ascending order, from the last bias's gradient: mean prediction less share."""
    n = len(update.position)
    biases = [g for g in update.gradient.values() if g.shape == (classes,)]
    if not biases:
        raise NotApplicable(f"no layer with a bias for each of {classes} classes is last, which tells the labels")
    bias = biases[-1]
    with torch.no_grad():
        columns = {c: torch.rand(64, *shapes[c], generator=coins) for c in nets.up.columns}
        mean = nets.output(update.weights, columns).softmax(1).mean(0)
    if update.signs:
        share = -bias
    else:  # of a class that is absent the entry is the mean prediction, times whatever the step's length was
        absent = bias > 0
        share = mean - bias / (bias[absent] / mean[absent]).median() if bool(absent.any()) else -bias
    counts, found = share * n, list[int]()
    for _ in range(n):
        found.append(int(counts.argmax()))
        counts[found[-1]] -= 1
    return torch.tensor(sorted(found))


def start(batch: torch.Size, shape: torch.Size, coins: torch.Generator) -> Tensor:
    """(updates, records, *shape): grey with a little noise for images, nought for rows of a table."""
    made = torch.zeros(*batch, *shape)
    if len(shape) == 3:
        made = 0.5 + 0.1 * torch.randn(*batch, *shape, generator=coins)
    return made.requires_grad_()


def told_records(
    found: Sequence[Update], nets: Networks, view: View, coins: torch.Generator
) -> dict[str, Tensor] | None:
    """column -> (updates, 1, *shape): the one record of every update without a search; None where one stays untold."""
    if len(nets.up.columns) > 1 or any(update.signs for update in found):
        return None
    told = [record for u in found if (record := brought_back(u, nets, view, coins)) is not None]
    return {nets.up.columns[0]: torch.stack(told)[:, None]} if len(told) == len(found) else None


def brought_back(update: Update, nets: Networks, view: View, coins: torch.Generator) -> Tensor | None:
    """(*shape): the one record, from what it brought to the first linear layer; None where that cannot be told.

    A linear layer's gradient of one record is the product of its bias's gradient and of what it took. Where that is the
    record itself, that is all; elsewhere auxiliary records teach to read it, as an inverse network does.
    """
    name = next(iter(nets.linear), "")
    bias = update.gradient.get(name.removesuffix("weight") + "bias")
    if bias is None or not bool(bias.any()):
        return None
    took = bias @ update.gradient[name] / bias.square().sum()
    column = nets.up.columns[0]
    if name == next(iter(update.gradient)) and took.numel() == view.shapes[column].numel():
        return took.reshape(view.shapes[column])
    if view.aux is None or column not in view.aux.inputs:
        return None
    some = view.aux.inputs[column][:PAIRS].float()
    labels = torch.zeros(len(some), dtype=torch.int64)
    with torch.no_grad():
        features = nets.loss(update.weights, {column: some}, labels)[1][name]
    return decoder.fit(features, some, coins=coins)(took[None])[0]


def angles(made: Named, wanted: Named, signs: Tensor) -> Tensor:
    """(updates,): 1 - cosine between gradients, or between their soft signs where only signs are known."""
    mine = torch.cat([made[name].flatten(1) for name in wanted], 1)
    theirs = torch.cat([tensor.flatten(1) for tensor in wanted.values()], 1)
    soft = mine / (mine.abs() + mine.detach().abs().median(1, keepdim=True).values + 1e-12)
    return 1 - cosine_similarity(torch.where(signs[:, None], soft, mine), theirs, dim=1)


def outside(taken: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> Tensor:
    """(updates,): the share of what linear layers take that lies outside of what their gradients span, summed."""
    shares = [torch.zeros(())]
    for name, basis in bases.items():
        features = taken[name]  # (updates, n, features)
        within = (features @ basis).square().sum(2)
        shares.append((1 - within / features.square().sum(2).clamp_min(1e-12)).mean(1))
    return torch.stack(torch.broadcast_tensors(*shares)).sum(0)


def stacked(many: Sequence[Named]) -> Named:
    return {name: torch.stack([each[name] for each in many]) for name in many[0]}


def _flat(tensors: Named) -> Tensor:
    return torch.cat([tensor.flatten().float() for tensor in tensors.values()])
