"""Sites agree on their common records by keyed ids, and put them in the same order."""

from pathlib import Path

import pytest
import torch

from secsplit.datasets import DataError
from secsplit.datasets.align import common, keyed_ids, order, places, read_ids, write_ids

KEY = bytes(range(32))


def numbers(names: list[str]) -> torch.Tensor:
    return torch.tensor([int(name[1:]) for name in names])


def test_two_sites_end_with_the_same_records_in_the_same_order() -> None:
    one, other = [f"p{i}" for i in range(40)], [f"p{i}" for i in range(59, 20, -1)]
    ids = common(keyed_ids(one, KEY), keyed_ids(other, KEY))
    assert len(ids) == 19
    first, second = (numbers(names)[places(keyed_ids(names, KEY), ids)] for names in (one, other))
    assert torch.equal(first, second)


def test_ids_need_the_key_and_differ_under_another() -> None:
    names = [f"p{i}" for i in range(100)]
    assert not set(keyed_ids(names, KEY).tolist()) & set(keyed_ids(names, KEY[::-1]).tolist())
    assert int(keyed_ids(names, KEY).min()) >= 0
    with pytest.raises(DataError, match="at least 32 bytes, got 16"):
        keyed_ids(names, KEY[:16])


def test_a_missing_record_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 missing"):
        places(keyed_ids(["p1", "p2"], KEY), keyed_ids(["p2", "p3"], KEY))


def test_a_list_comes_back(tmp_path: Path) -> None:
    ids = keyed_ids([f"p{i}" for i in range(9)], KEY)
    write_ids(tmp_path / "list", ids)
    assert torch.equal(read_ids(tmp_path / "list"), ids.sort().values)


@pytest.mark.parametrize("text", ["12", "g" * 16, "f" * 16, f"{5:016x}\n" * 2, "é" * 16])
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError, match="expected a list of ids"):
        read_ids(tmp_path / "list")


def test_order_tells_another_record_and_another_order() -> None:
    ids = keyed_ids(["p1", "p2", "p3"], KEY)
    assert order(ids) == order(ids.clone()) > 0
    assert len({order(ids), order(ids.flip(0)), order(ids[:2])}) == 3
