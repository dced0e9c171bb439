"""What somebody reaches without the messages, or with all of them: the rivals that every attack is held against.

Blind (they count as chance): the mean of the adversary's auxiliary records; a classifier trained on the same clues over
the raw features, where the adversary holds those features itself (arXiv 2603.18680: much that is sold as leakage is
feature-label alignment); the class shares given the task's own label, for an attribute; the attack itself on noise.
Not blind: the auxiliary record nearest to the truth (an attack that beats it has learnt of the record and not only of
its kind), and the auxiliary record whose smashed data is nearest (kNN in activation space).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from attacks.base import Guess
from audits.evidence import Rival
from audits.images import CHUNK
from audits.truth import Truth
from secsplit.message import Kind
from secsplit.threat import View

LEAST_PAIRS = 4


def rivals(view: View, guess: Guess, truth: Truth) -> tuple[Rival, ...]:
    """The baselines that apply to this guess by this adversary."""
    if not len(guess.position):
        return ()
    return tuple(_of_inputs(view, guess, truth) if guess.goal == "input" else _of_labels(view, guess, truth))


def _of_inputs(view: View, guess: Guess, truth: Truth) -> Iterator[Rival]:
    true = truth.input(guess.column, guess.cast, guess.position)
    if view.aux is None or guess.column not in view.aux.inputs:
        mean = torch.cat([truth.inputs[c][guess.column] for c in truth.casts]).mean(0)
        yield Rival("the mean private record", _made(guess, inputs=mean.expand_as(true)), "the private mean")
    else:
        aux = view.aux.inputs[guess.column]
        yield Rival("the mean auxiliary record", _made(guess, inputs=aux.mean(0).expand_as(true)))
        near = aux[_nearest(true.flatten(1), aux.flatten(1))]
        yield Rival("the auxiliary record nearest to the truth", _made(guess, inputs=near), "the truth", blind=False)
        if (matched := _nearest_smashed(view, guess)) is not None:
            rows, places = matched
            yield Rival(
                "the auxiliary record with the nearest smashed data",
                Guess("input", guess.column, guess.cast[rows], guess.position[rows], guess.step[rows],
                      inputs=aux[places]),
                "messages and queries", blind=False,
            )  # fmt: skip
    if view.pairs is not None and guess.column in view.pairs.inputs and len(view.pairs.position) >= LEAST_PAIRS:
        yield from _ridge(view, guess, truth)


def _nearest_smashed(view: View, guess: Guess) -> tuple[Tensor, Tensor] | None:
    """(rows of the guess, auxiliary record of each), by the last smashed data of one segment that may be queried."""
    assert view.aux is not None
    for segment in view.topology.order:
        users = view.topology.users(segment.name)
        if segment.inputs != (f"data:{guess.column}",) or segment.name not in view.query or not users:
            continue
        seen = _last_seen(view, users[0].name, guess)
        if seen is None:
            return None
        rows, values = seen
        answers = view.query[segment.name](view.aux.inputs[guess.column])
        return rows, _nearest(values.flatten(1), answers.flatten(1))
    return None


def _last_seen(view: View, edge: str, guess: Guess) -> tuple[Tensor, Tensor] | None:
    """(rows, values): the guess's rows that crossed the edge, and the last smashed data of each."""
    wanted = {key: i for i, key in enumerate(zip(guess.cast.tolist(), guess.position.tolist(), strict=True))}
    found: dict[int, Tensor] = {}
    for record in reversed(list(view.records(Kind.SMASHED, edge=edge))):
        keys = [(record.stamp.cast, p) for p in view.order(record.stamp).tolist()]
        fresh = [(wanted[k], j) for j, k in enumerate(keys) if k in wanted and wanted[k] not in found]
        if fresh:
            tensor = record.tensor
            found |= {i: tensor[j] for i, j in fresh}
        if len(found) == len(wanted):
            break
    if not found:
        return None
    return torch.tensor(list(found)), torch.stack(list(found.values()))


def _ridge(view: View, guess: Guess, truth: Truth) -> Iterator[Rival]:
    """Ridge regression from the adversary's own features to the column, fitted on the known pairs."""
    assert view.pairs is not None
    own = [c for c in truth.inputs[0] if any(c in known.inputs for known in view.own.values())]
    if not own:
        return
    fitted = Ridge().fit(
        _features(truth, own, view.pairs.cast, view.pairs.position),
        view.pairs.inputs[guess.column].flatten(1).numpy(),
    )
    made = torch.as_tensor(fitted.predict(_features(truth, own, guess.cast, guess.position)))
    shape = view.pairs.inputs[guess.column].shape[1:]
    yield Rival(
        f"ridge regression on {len(view.pairs.position)} known pairs",
        _made(guess, inputs=made.reshape(-1, *shape).float()), "its own features and the pairs",
    )  # fmt: skip


def _of_labels(view: View, guess: Guess, truth: Truth) -> Iterator[Rival]:
    if not truth.classes.get(guess.column, 0):
        return
    if view.clues is not None and guess.column in view.clues.labels and len(view.clues.position):
        holds = {c for known in view.own.values() for c in known.inputs}
        columns = tuple(c for c in truth.inputs[0] if c in holds) or tuple(truth.inputs[0])
        made = _classified(guess, truth, columns, view.clues.cast, view.clues.position, view.clues.labels[guess.column])
        if made is not None:
            sees = "its own features and the clues" if holds else "the private features and the clues"
            yield Rival("the same clues on raw features", _made(guess, labels=made), sees, blind=bool(holds))
    if guess.goal == "attribute":
        held = {c for known in view.own.values() for c in known.labels} - {guess.column}
        for task in sorted(held):
            yield Rival(f"the commonest {guess.column} of each {task}", _given(guess, truth, task), "its own labels")


def _classified(
    guess: Guess, truth: Truth, columns: tuple[str, ...], cast: Tensor, position: Tensor, labels: Tensor
) -> Tensor | None:
    known = labels >= 0
    if not columns or len(labels[known].unique()) < 2:
        return None
    x = _features(truth, columns, cast[known], position[known])
    fitted = LogisticRegression(max_iter=1000).fit(x, labels[known].numpy())
    return torch.as_tensor(fitted.predict(_features(truth, columns, guess.cast, guess.position)))


def _given(guess: Guess, truth: Truth, task: str) -> Guess:
    """The commonest value of the guessed column among the records of each value of the task's label: a ceiling."""
    value = truth.label(guess.column, guess.cast, guess.position).long()
    given = truth.label(task, guess.cast, guess.position).long()
    made = torch.empty_like(value)
    for each in given.unique():
        made[given == each] = value[given == each].clamp_min(0).bincount().argmax()
    return _made(guess, labels=made)


def _features(truth: Truth, columns: tuple[str, ...] | list[str], cast: Tensor, position: Tensor):  # type: ignore[no-untyped-def]
    parts = [truth.input(column, cast, position).flatten(1) for column in columns]
    return torch.cat(parts, 1).numpy()


def _nearest(rows: Tensor, among: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part.float(), among.float()).argmin(1) for part in rows.split(CHUNK)])


def _made(like: Guess, *, inputs: Tensor | None = None, labels: Tensor | None = None) -> Guess:
    return Guess(like.goal, like.column, like.cast, like.position, like.step, inputs=inputs, labels=labels)
