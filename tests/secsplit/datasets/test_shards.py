"""Horizontal partitions: every record to exactly one client, from the seed alone, in the shares asked for."""

import pytest
import torch

from secsplit.datasets import DataError, Dataset, DataSpec, load, shards


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataSpec())


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_every_record_goes_to_exactly_one_client_and_each_has_one(digits: Dataset, how: str, count: int) -> None:
    parts = shards(digits, count, how=how, alpha=0.1, seed=3)  # type: ignore[arg-type]
    assert len(parts) == count
    assert min(len(part.train) for part in parts) >= 1
    assert torch.cat([part.train.ids for part in parts]).sort().values.equal(digits.train.ids.sort().values)
    for part in parts:
        assert part.test is digits.test
        rows = torch.searchsorted(digits.train.ids, part.train.ids)
        assert torch.equal(part.train.inputs["x"], digits.train.inputs["x"][rows])


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_the_seed_decides_and_the_global_state_does_not(digits: Dataset, how: str) -> None:
    torch.manual_seed(1)
    one = shards(digits, 3, how=how, seed=5)  # type: ignore[arg-type]
    torch.manual_seed(2)
    same, other = shards(digits, 3, how=how, seed=5), shards(digits, 3, how=how, seed=6)  # type: ignore[arg-type]
    assert [a.train.ids.tolist() for a in one] == [b.train.ids.tolist() for b in same]
    assert [a.train.ids.tolist() for a in one] != [b.train.ids.tolist() for b in other]


def test_weights_set_the_sizes_within_one_record(digits: Dataset) -> None:
    sizes = [len(part.train) for part in shards(digits, 3, weights=(1, 2, 5))]
    assert sum(sizes) == len(digits.train)
    for size, share in zip(sizes, (1 / 8, 2 / 8, 5 / 8), strict=True):
        assert abs(size - share * len(digits.train)) < 1


def test_a_small_alpha_makes_clients_unequal_in_labels_and_a_large_one_does_not(digits: Dataset) -> None:
    def imbalance(alpha: float) -> float:
        """Mean over the clients of the total variation between its labels and everyone's."""
        everyone = torch.bincount(digits.train.labels["y"], minlength=10) / len(digits.train)
        parts = shards(digits, 5, how="dirichlet", alpha=alpha, seed=0)
        seen = [torch.bincount(part.train.labels["y"], minlength=10) / len(part.train) for part in parts]
        return float(torch.stack([(share - everyone).abs().sum() / 2 for share in seen]).mean())

    assert imbalance(0.1) > 0.4 > 0.1 > imbalance(1000.0)


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution(digits: Dataset) -> None:
    """Of one class, client 1 of 2 gets a share of mean 1/2 and variance 1/(4 (2 alpha + 1)), Beta(alpha, alpha)."""
    alpha, share = 2.0, []
    for seed in range(300):
        first = shards(digits, 2, how="dirichlet", alpha=alpha, seed=seed)[0].train.labels["y"]
        share.append(torch.bincount(first, minlength=10) / torch.bincount(digits.train.labels["y"]))
    drawn = torch.stack(share)
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_too_many_clients_wrong_weights_and_no_classes_are_refused(digits: Dataset) -> None:
    with pytest.raises(DataError, match="1 to 1438 clients for 1438 records, got 1439"):
        shards(digits, 1439)
    with pytest.raises(DataError, match=r"data.weights: expected 3 positive numbers"):
        shards(digits, 3, weights=(1, 2))
    sizes = load(DataSpec(name="breast-cancer", labels={"size": "mean area"}))
    with pytest.raises(DataError, match=r'data\.partition = "iid"'):
        shards(sizes, 2, how="dirichlet")
