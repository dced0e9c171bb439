"""Tables from files: the same records whatever the format, gaps filled, texts as levels, ids that show no number."""

import gzip
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow import parquet, table

from secsplit.datasets import DataError, Dataset, DataSpec, load

HEADER = ["mrn", "age", "sex", "lab", "outcome", "note"]


def row(i: int) -> list[str]:
    lab = "" if i % 7 == 0 else f"{i / 10}"
    return [f"MRN{i:03d}", str(20 + i % 50), "F" if i % 3 else "M", lab, "ill" if i % 4 else "well", f"text {i}"]


ROWS = [row(i) for i in range(120)]


def csv(folder: Path) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join(",".join(row) for row in [HEADER, *ROWS]) + "\n", encoding="utf-8-sig")
    return path


def packed(folder: Path) -> Path:
    path = folder / "t.csv.gz"
    path.write_bytes(gzip.compress(csv(folder).read_bytes()))
    return path


def tabs(folder: Path) -> Path:
    path = folder / "t.tsv"
    path.write_text("\r\n".join("\t".join(row) for row in [HEADER, *ROWS]), encoding="utf-8")
    return path


def parquet_file(folder: Path) -> Path:
    path = folder / "t.parquet"
    columns = dict(zip(HEADER, map(list, zip(*ROWS, strict=True)), strict=True))
    columns["age"] = [int(value) for value in columns["age"]]  # type: ignore[misc]
    columns["lab"] = [float(value) if value else None for value in columns["lab"]]  # type: ignore[misc]
    parquet.write_table(table(columns), path)
    return path


def arff(folder: Path) -> Path:
    path = folder / "t.arff"
    names = ",".join(row[0] for row in ROWS)
    notes = ",".join(f"'{row[5]}'" for row in ROWS)
    head = f"@relation t\n@attribute mrn {{{names}}}\n@attribute age numeric\n@attribute sex {{F,M}}\n"
    head += "@attribute lab numeric\n"
    head += f"@attribute outcome {{ill,well}}\n@attribute note {{{notes}}}\n@data\n"
    body = [",".join([*row[:3], row[3] or "?", row[4], f"'{row[5]}'"]) for row in ROWS]
    path.write_text(head + "\n".join(body) + "\n")
    return path


def key(folder: Path, text: str = "ab" * 32, mode: int = 0o600) -> Path:
    path = folder / "ids.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def read(path: Path, **options: object) -> Dataset:
    return load(DataSpec.model_validate({"name": "csv", "path": path, "label": "outcome", **options}))


@pytest.mark.parametrize("write", [csv, packed, tabs, parquet_file, arff])
def test_every_format_gives_the_same_records(write: Callable[[Path], Path], tmp_path: Path) -> None:
    data = read(write(tmp_path))
    assert data.card.features == ("age", "sex=F", "sex=M", "lab")
    assert data.classes == {"y": 2}
    assert "label y: 0 ill, 1 well" in data.card.what
    assert "left out: note" in data.card.what
    known = read(csv(tmp_path), modalities={"x": "age, sex=F, sex=M, lab"})
    given = read(write(tmp_path), modalities={"x": "age, sex=F, sex=M, lab"})
    assert torch.equal(given.train.inputs["x"], known.train.inputs["x"])
    assert torch.equal(given.train.labels["y"], known.train.labels["y"])


def test_gaps_are_filled_by_the_median_of_the_records_to_train_on(tmp_path: Path) -> None:
    data = read(csv(tmp_path), modalities={"x": "lab"})
    raw = torch.tensor([float(row[3]) if row[3] else torch.nan for row in ROWS], dtype=torch.float64)
    train = raw[data.train.ids]
    filled = train.nan_to_num(float(train.nanmedian()))
    expected = (filled - filled.mean()) / filled.std(correction=0)
    assert torch.allclose(data.train.inputs["x"].flatten().double(), expected, atol=1e-5)
    assert not torch.isnan(data.test.inputs["x"]).any()


def test_a_label_is_withdrawn_from_the_inputs_with_all_its_levels(tmp_path: Path) -> None:
    data = read(csv(tmp_path), labels={"y": "y", "sex": "sex", "lab": "lab"}, modalities={"x": "age, sex*, lab"})
    assert data.shapes() == {"x": torch.Size([1])}
    assert data.classes == {"y": 2, "sex": 2, "lab": 0}
    unlabelled = sum(not ROWS[row][3] for row in data.train.ids.tolist())
    assert int(torch.isnan(data.train.labels["lab"]).sum()) == unlabelled > 0


def test_hospital_numbers_become_keyed_ids_and_rows_come_in_their_order(tmp_path: Path) -> None:
    data = read(csv(tmp_path), id="mrn", id_key=key(tmp_path))
    assert "mrn" not in " ".join(data.card.features)
    secret = bytes.fromhex("ab" * 32)
    whole = {
        int.from_bytes(hmac.new(secret, b"secsplit record id\0" + row[0].encode(), hashlib.sha256).digest()[:8], "big")
        >> 1: row
        for row in ROWS
    }
    ids = torch.cat([data.train.ids, data.test.ids]).tolist()
    assert sorted(ids) == sorted(whole)
    assert data.train.ids.tolist() == sorted(data.train.ids.tolist())
    for name, label in zip(data.train.ids.tolist(), data.train.labels["y"].tolist(), strict=True):
        assert ("ill", "well")[label] == whole[name][4]


def test_two_sites_with_other_columns_and_order_hold_the_same_patients_in_each_row(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "t.csv").write_text("\n".join(",".join(row[:3] + row[4:5]) for row in [HEADER, *ROWS]))
    (other / "t.csv").write_text("\n".join(",".join([row[0], row[3], row[4]]) for row in [HEADER, *reversed(ROWS)]))
    sites = [read(folder / "t.csv", id="mrn", id_key=key(tmp_path)) for folder in (one, other)]
    assert torch.equal(sites[0].train.ids, sites[1].train.ids)
    assert torch.equal(sites[0].test.ids, sites[1].test.ids)


def broken(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "t.csv"
        path.write_bytes(text.encode("latin-1"))
        return path

    return write


REFUSED = {
    "misspelt label": (csv, {"label": "outcom"}, "did you mean 'outcome'"),
    "misspelt id": (csv, {"id": "mnr"}, "did you mean 'mrn'"),
    "free text as label": (csv, {"label": "note"}, "numbers, or at most 50 classes"),
    "id without a key": (csv, {"id": "mrn"}, "no hospital number leaves a file"),
    "ragged": (broken("a,outcome\n1,2\n1,2,3\n"), {}, "row 3: expected 2 values, got 3"),
    "repeated column": (broken("a,a,outcome\n1,2,3\n"), {}, "each once, got 'a'"),
    "empty": (broken(""), {}, "rows under a line of column names"),
    "no rows": (broken("a,outcome\n"), {}, "rows under a line of column names"),
    "not text": (broken("a,outcome\n\xff\xfe,1\n"), {}, "expected a table"),
    "unknown suffix": (lambda folder: folder / "t.xlsx", {}, "expected .csv, .tsv, .parquet, .arff, got .xlsx"),
    "no such file": (lambda folder: folder / "u.csv", {}, "No such file"),
    "not Parquet": (lambda folder: csv(folder).rename(folder / "t.parquet"), {}, "expected a Parquet file"),
    "not ARFF": (lambda folder: csv(folder).rename(folder / "t.arff"), {}, "expected an ARFF file"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_refused_with_what_came(
    case: tuple[Callable[[Path], Path], dict[str, object], str], tmp_path: Path
) -> None:
    write, options, says = case
    with pytest.raises(DataError) as refusal:
        read(write(tmp_path), **options)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("ab" * 32, 0o644, "chmod 600"),
        ("ab" * 8, 0o600, "at least 32 bytes, got 8"),
        ("hello", 0o600, "hexadecimal digits"),
    ],
    ids=["others can read it", "short", "not a key"],
)
def test_a_bad_key_is_refused(text: str, mode: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read(csv(tmp_path), id="mrn", id_key=key(tmp_path, text, mode))


def test_repeated_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("mrn,a,outcome\n" + "1,2,3\n" * 3)
    with pytest.raises(DataError, match="one record a name, got 2 repeated"):
        read(path, id="mrn", id_key=key(tmp_path))


FLCHAIN = """@relation flchain
@attribute age numeric
@attribute sex {F,M}
@attribute creatinine numeric
@attribute futime numeric
@attribute death {alive,dead}
@attribute chapter {Blood,Skin}
@data
"""


def test_flchain_predicts_death_from_what_was_known_before_it(tmp_path: Path) -> None:
    lines = [
        f"{50 + i},{'FM'[i % 2]},{1 + i / 100 if i % 5 else '?'},{i * 10},{'alive,?' if i % 4 else 'dead,Skin'}"
        for i in range(40)
    ]
    (tmp_path / "flchain.arff").write_text(FLCHAIN + "\n".join(lines) + "\n")
    data = load(DataSpec(name="flchain", path=tmp_path / "flchain.arff"))
    assert data.card.features == ("age", "sex=F", "sex=M", "creatinine")
    assert int(data.train.labels["y"].sum() + data.test.labels["y"].sum()) == 10
    with pytest.raises(DataError, match=r"a column 'death'"):
        load(DataSpec(name="flchain", path=csv(tmp_path)))
