"""Clustering and similarity: labels of any number of classes from gradients or from smashed data.

Liu, Lyu, Cui, Tao, "Similarity-based Label Inference Attack against Training and Inference of Split Learning", IEEE
Trans. Inf. Forensics Secur. 2024, arXiv 2203.05222. Gradients are compared by their directions (cosine), smashed data
by Euclidean distance: k-means, the nearest of a few clues, or (transfer) a classifier trained on rows that clustering
labelled.

The first batches after initialisation are the ones to cluster: while the softmax is near uniform,
g_i ~ W^T (1/K - e_y) takes one direction a class, at any cut. Later gradients are a mixture at early cuts, but rows
come again every epoch in an order that both ends know: what the opening told of a few rows trains a classifier for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable, drawing
from attacks.gradient_norm import GRADIENT
from attacks.rows import Batch, batches, classes, gradients, places, secret_column, told, unique_rows, untold
from secsplit.message import Kind
from secsplit.threat import Known, Knows, View

PAPER = "Liu et al., IEEE TIFS 2024, arXiv 2203.05222"


@dataclass(frozen=True, kw_only=True)
class GradientClustering(Attack):
    """k-means on the directions of the first gradients, the opening of the run together.

    column: the label column (None: the first secret one); rows: how many a class make the opening (whole batches of the
    first epoch); restarts of k-means. Clues among those rows, or a telling prior, name the clusters; else the guess is
    up to permutation. The paper clusters each batch by itself; together is as good, and better for small batches.
    """

    name: ClassVar[str] = "gradient-clustering"
    paper: ClassVar[str] = PAPER
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True)
    cost: ClassVar[float] = 1.0

    column: str | None = None
    rows: int = 100
    restarts: int = 10

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        count = classes(view, column)
        found = opening(gradients(view, column), self.rows * count)
        cluster = k_means(directions(found), count, self.restarts, coins)
        return name_clusters(view, column, count, places(found)[:2], cluster, {"batches": len(found)})


@dataclass(frozen=True, kw_only=True)
class GradientTransfer(Attack):
    """Labels the opening's rows by clustering, then all rows by a classifier of the gradients of later epochs.

    column, rows, restarts: as of the clustering; iterations: Adam steps of the linear classifier, one an epoch;
    epochs: at most so many later epochs are read.
    """

    name: ClassVar[str] = "gradient-transfer"
    paper: ClassVar[str] = PAPER
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True)
    cost: ClassVar[float] = 20.0

    column: str | None = None
    rows: int = 100
    restarts: int = 10
    iterations: int = 300
    epochs: int = 2

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        count = classes(view, column)
        every = gradients(view, column)
        first = opening(every, self.rows * count)
        cluster = k_means(directions(first), count, self.restarts, coins)
        later = sorted({batch.epoch for batch in every if batch.epoch > every[0].epoch})[: self.epochs]
        if not later:
            raise NotApplicable("every row was seen once; a transfer needs gradients of a second epoch")
        cast, position, index = unique_rows(*places([batch for batch in every if batch.epoch in later])[:2])
        score, start = torch.zeros(len(position), count), 0
        labelled = Known({}, {column: cluster}, *places(first)[:2])
        for epoch in later:
            found = [batch for batch in every if batch.epoch == epoch]
            mine = index[start : start + sum(map(len, found))]
            start += len(mine)
            score.index_add_(0, mine, _transferred(view, column, found, labelled, self.iterations, coins))
        facts = {"rows labelled by the opening": len(cluster), "epochs": len(later)}
        return name_clusters(view, column, count, (cast, position), score.argmax(1), facts)


@dataclass(frozen=True, kw_only=True)
class ClueDistance(Attack):
    """A row is of the class of the clue whose gradient, of the same epoch, points most nearly the same way.

    column: the label column (None: the first secret one); epochs: at most so many are read, from the first on.
    """

    name: ClassVar[str] = "clue-distance"
    paper: ClassVar[str] = PAPER
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(any_of=GRADIENT, secret_labels=True, knows=frozenset({Knows.CLUES}))
    cost: ClassVar[float] = 5.0

    column: str | None = None
    epochs: int = 2

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        classes(view, column)
        every = gradients(view, column)
        return _nearest_clue(view, column, every, sorted({b.epoch for b in every})[: self.epochs], cosine=True)


@dataclass(frozen=True, kw_only=True)
class SmashedClustering(Attack):
    """The same by Euclidean distance between smashed data that were received: k-means, or the nearest clue if any.

    column: the label column (None: the first secret one); rows: at most so many are clustered, the last ones seen, for
    smashed data part by class as training goes on; restarts of k-means.
    """

    name: ClassVar[str] = "smashed-clustering"
    paper: ClassVar[str] = PAPER
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),), secret_labels=True)
    cost: ClassVar[float] = 5.0

    column: str | None = None
    rows: int = 20_000
    restarts: int = 3

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = secret_column(view, self.column)
        count = classes(view, column)
        every = batches(view, [Kind.SMASHED], column=column)
        if not every:
            raise NotApplicable("no smashed data on the way to that label was received")
        last = max(batch.epoch for batch in every)
        found = [batch for batch in every if batch.epoch == last][::-1]
        if view.clues is not None and column in view.clues.labels:
            return _nearest_clue(view, column, found, [last], cosine=False)
        found = opening(found, self.rows)
        z = projected(torch.cat([batch.values() for batch in found]), 50)
        cluster = k_means(z, count, self.restarts, coins)
        return name_clusters(view, column, count, places(found)[:2], cluster, {"batches": len(found)})


def opening(found: Sequence[Batch], rows: int) -> list[Batch]:
    """The first batches that hold so many rows, of one epoch."""
    chosen: list[Batch] = []
    for batch in found:
        if batch.epoch != found[0].epoch or sum(map(len, chosen)) >= rows:
            break
        chosen.append(batch)
    return chosen


def directions(found: Sequence[Batch]) -> Tensor:
    """(rows, d) gradients of unit length: cosine similarity is Euclidean distance on the sphere."""
    return normalize(torch.cat([batch.values() for batch in found]), dim=1)


def projected(rows: Tensor, most: int) -> Tensor:
    """(rows, at most `most`) the principal coordinates, centred; distances are kept but for the smallest spread."""
    if rows.shape[1] <= most:
        return rows
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double() if rows.shape[1] <= len(rows) else (rows @ rows.T).double())
    top = vectors[:, -most:].to(rows.dtype)
    return rows @ top if rows.shape[1] <= len(rows) else rows @ normalize(rows.T @ top, dim=0)


def k_means(rows: Tensor, count: int, restarts: int, coins: torch.Generator) -> Tensor:
    """(rows,) the cluster of each row; with fewer rows than clusters, each is its own."""
    seed = int(torch.randint(2**31 - 1, (), generator=coins))
    fitted = KMeans(min(count, len(rows)), n_init=restarts, random_state=seed).fit(rows.cpu().numpy())
    return torch.from_numpy(fitted.labels_).long()


def _transferred(
    view: View, column: str, found: Sequence[Batch], labelled: Known, iterations: int, coins: torch.Generator
) -> Tensor:
    """(rows, classes) log probabilities of an epoch's rows by a linear classifier of their gradients' directions."""
    count = view.classes[column]
    x, y = _labelled_rows(found, labelled, column, cosine=True)
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / spread
    with drawing(coins):
        head = torch.nn.Linear(x.shape[1], count)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in range(iterations):
        pick = torch.randint(len(x), (min(128, len(x)),), generator=coins)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(cross_entropy(head(x[pick]), y[pick]))
        optimizer.step()
    with torch.no_grad():
        return torch.cat([head((directions([batch]) - mean) / spread) for batch in found]).log_softmax(1)


def _nearest_clue(view: View, column: str, every: Sequence[Batch], epochs: Sequence[int], *, cosine: bool) -> Guess:
    """Every row by the nearest clue's vector of the same epoch; over several epochs, the scores add up."""
    if view.clues is None:
        raise NotApplicable(f"no row's label {column!r} is known")
    cast, position, index = unique_rows(*places([batch for batch in every if batch.epoch in epochs])[:2])
    total, start = torch.zeros(len(position), view.classes[column]), 0
    seen: set[int] = set()
    for epoch in epochs:
        found = [batch for batch in every if batch.epoch == epoch]
        clue, kind = _labelled_rows(found, view.clues, column, cosine=cosine)
        seen |= set(kind.tolist())
        for batch in found if len(clue) else ():
            distance = torch.cdist(directions([batch]) if cosine else batch.values(), clue)
            score = torch.full((len(batch), total.shape[1]), -float(distance.max()))
            score.scatter_reduce_(1, kind.expand(len(batch), -1), -distance, "amax")
            total.index_add_(0, index[start : start + len(batch)], score)
            start += len(batch)
    if not seen:
        raise NotApplicable(f"none of the rows whose label {column!r} is known was seen")
    facts = {"classes with a clue": len(seen), "epochs": len(epochs)}
    step = torch.full_like(position, -1)
    return untold(Guess("label", column, cast, position, step, total, total.argmax(1), facts=facts), view.clues)


def _labelled_rows(found: Sequence[Batch], known: Known, column: str, *, cosine: bool) -> tuple[Tensor, Tensor]:
    """(m, d) vectors of the rows whose label is known, and (m,) their labels; only their batches are read."""
    vectors, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.int64)]
    for batch in found:
        label = told(known, column, *places([batch])[:2])
        if (label >= 0).any():
            vectors.append((directions([batch]) if cosine else batch.values())[label >= 0])
            labels.append(label[label >= 0])
    return torch.cat(vectors[1:] or vectors), torch.cat(labels)


def name_clusters(
    view: View,
    column: str,
    count: int,
    place: tuple[Tensor, Tensor],
    cluster: Tensor,
    facts: Mapping[str, float | int | str],
) -> Guess:
    """Clusters get the names of classes from clues among their rows, or from a prior that tells classes apart."""
    cast, position = place
    clue = told(view.clues, column, cast, position)
    votes = torch.zeros(count, count).index_put_((cluster[clue >= 0], clue[clue >= 0]), torch.ones(()), accumulate=True)
    size = cluster.bincount(minlength=count).float()
    prior = view.prior.get(column)
    worth = votes if prior is None else votes + 1e-3 * size[:, None] / len(cluster) * prior.clamp_min(1e-9).log()
    _, names = linear_sum_assignment(worth.numpy(), maximize=True)
    by_clues = int((votes.sum(1) > 0).sum()) >= count - 1
    labels = torch.from_numpy(names)[cluster]
    guess = Guess(
        "label",
        column,
        cast,
        position,
        step=torch.full_like(position, -1),
        labels=labels,
        up_to_permutation=not (by_clues or _telling(prior, len(cluster))),
        facts={**facts, "clusters with a clue": int((votes.sum(1) > 0).sum())},
    )
    return untold(guess, view.clues)


def _telling(prior: Tensor | None, n: int) -> bool:
    """Whether n draws part the classes by their sizes alone: neighbours in size lie over three deviations apart."""
    if prior is None:
        return False
    sizes = prior.double().sort().values
    return bool((sizes.diff() > 3 * (sizes[1:] / n).sqrt()).all())
