"""The figures that the attacks' own tests need, of guesses against the victim's truth."""

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score
from torch import Tensor

from attacks.base import Guess
from tests.attacks.victims import Victim


def leak_aucs(victim: Victim, guess: Guess) -> Tensor:
    """(batches,) ROC-AUC of the scores within each batch that has both classes."""
    assert guess.scores is not None
    y = victim.truth(guess.column, guess.position)
    found = []
    for step in guess.step.unique():
        rows = guess.step == step
        if 0 < y[rows].sum() < rows.sum():
            area = roc_auc_score(y[rows], guess.scores[rows])
            found.append(max(area, 1 - area) if guess.up_to_permutation else area)
    return torch.tensor(found)


def accuracy(victim: Victim, guess: Guess) -> float:
    """Share of right labels; up to permutation where the guess is."""
    assert guess.labels is not None
    y = victim.truth(guess.column, guess.position)
    if not guess.up_to_permutation:
        return (guess.labels == y).float().mean().item()
    size = int(max(y.max(), guess.labels.max())) + 1
    counts = torch.zeros(size, size).index_put_((guess.labels, y), torch.ones(len(y)), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return float(counts[rows, columns].sum() / len(y))
