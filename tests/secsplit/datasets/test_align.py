"""Sites agree on their common records by keyed ids, and put them in the same order."""

import pytest
import torch

from secsplit.datasets import DataError, Records
from secsplit.datasets.align import aligned, common, keyed_ids

KEY = bytes(range(32))


def site(names: list[str]) -> Records:
    values = torch.tensor([float(name[1:]) for name in names])
    return Records({"x": values.unsqueeze(1)}, {}, keyed_ids(names, KEY))


def test_two_sites_end_with_the_same_records_in_the_same_order() -> None:
    one, other = site([f"p{i}" for i in range(40)]), site([f"p{i}" for i in range(59, 20, -1)])
    ids = common(one.ids, other.ids)
    assert len(ids) == 19
    assert torch.equal(aligned(one, ids).inputs["x"], aligned(other, ids).inputs["x"])


def test_ids_need_the_key_and_differ_under_another() -> None:
    names = [f"p{i}" for i in range(100)]
    assert not set(keyed_ids(names, KEY).tolist()) & set(keyed_ids(names, KEY[::-1]).tolist())
    assert int(keyed_ids(names, KEY).min()) >= 0
    with pytest.raises(DataError, match="at least 32 bytes, got 16"):
        keyed_ids(names, KEY[:16])


def test_a_missing_record_is_refused() -> None:
    one = site(["p1", "p2"])
    with pytest.raises(DataError, match="1 of 2 missing"):
        aligned(one, keyed_ids(["p2", "p3"], KEY))
