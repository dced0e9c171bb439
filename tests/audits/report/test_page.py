"""The page says what the JSON says, number by number; it needs nothing but itself; nothing is made up."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from audits.cli import reported
from audits.finished import Finished
from audits.leakage import METRICS
from audits.privacy import Audit
from audits.report.assemble import report_of
from audits.report.model import Report
from audits.report.page import page
from audits.report.value import Value, num, shown
from audits.report.write import schema, write
from secsplit.errors import RunError
from tests.audits.report.places import Reader, misplaced, resolved, unsaid

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="session")
def report(finished: Finished, audited: Audit) -> Report:
    return report_of(finished, audited, now=NOW)


@pytest.fixture(scope="session")
def html(report: Report) -> str:
    return page(json.loads(report.model_dump_json()))


def test_every_number_is_the_json_s_own(report: Report, html: str) -> None:
    value = json.loads(report.model_dump_json())
    numbers = [attrs for tag, attrs in Reader(html).tags if tag == "data"]
    assert len(numbers) > 150
    for attrs in numbers:
        assert attrs["data-key"] is not None
        assert attrs["value"] == str(resolved(value, attrs["data-key"]))
    assert misplaced(value, html) == []
    assert unsaid(value, html) == []


def test_a_number_without_its_place_or_at_another_would_be_found(report: Report, html: str) -> None:
    value = json.loads(report.model_dump_json())
    assert misplaced(value, html.replace("<main>", "<main><p>leaks 3%</p>")) == ["leaks 3%"]
    figure = next(text for stack, text in Reader(html).texts if stack and stack[-1][0] == "data" and "%" in text)
    assert misplaced(value, html.replace(f">{figure}<", ">12.3%<"))
    assert unsaid(value, html.replace('"img" aria-label="', '"img" aria-label="7 times ', 1)) == ["7"]


def test_tags_are_balanced_and_ids_are_unique(html: str) -> None:
    reader = Reader(html)
    assert reader.open == []
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {i for _, attrs in reader.tags for key in ("aria-labelledby",) for i in (attrs.get(key) or "").split()}
    assert named <= set(ids)
    links = {(attrs.get("href") or "").removeprefix("#") for tag, attrs in reader.tags if tag == "a"}
    assert links <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    tags = Reader(html).tags
    assert {"script", "link", "iframe", "object", "embed", "form"}.isdisjoint(tag for tag, _ in tags)
    assert all((attrs.get("src") or "").startswith("data:image/png;base64,") for tag, attrs in tags if tag == "img")
    assert not any(key.startswith("on") for _, attrs in tags for key in attrs)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", html)
    assert "default-src 'none'" in html


def test_every_picture_has_words(html: str) -> None:
    tags = Reader(html).tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("role") == "img" and attrs.get("aria-label") for tag, attrs in tags if tag == "svg")
    assert sum(tag == "svg" for tag, _ in tags) >= 5


def test_the_json_fits_its_published_schema(report: Report) -> None:
    value = json.loads(report.model_dump_json())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(value, schema(), cls=jsonschema.Draft202012Validator)
    broken = {**value, "verdict": {**value["verdict"], "state": "green"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema(), cls=jsonschema.Draft202012Validator)
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_controller_s_words_are_never_made_up(report: Report, html: str) -> None:
    assert all(field.answer is None for field in (*report.purpose, *report.sign_off.fields))
    assert html.count('class="blank"') == len(report.purpose) + len(report.sign_off.fields)


def test_without_a_policy_nothing_passes(report: Report) -> None:
    assert report.verdict.state == "not run"
    assert "act on before this configuration is used with real patients" in report.verdict.headline


def test_false_claims_are_not_made(html: str) -> None:
    words = " ".join(text for stack, text in Reader(html).texts if "style" not in {tag for tag, _ in stack}).lower()
    for claim in ("is safe", "verified private", "no leakage", "guarantees privacy", "is anonymous"):
        assert claim not in words


def test_what_crossed_is_listed_with_its_bytes(report: Report) -> None:
    smashed = [flow for flow in report.scope.flows if flow.kind == "smashed"]
    assert {(f.sender, f.receiver) for f in smashed} == {("hospital-a", "compute"), ("hospital-b", "compute")}
    # 2 epochs of 240 training records, each followed by 120 test records, 48 floats each
    assert sum(f.bytes for f in smashed) == 2 * (240 + 120) * 48 * 4
    assert sum(t.forward for t in report.cost.timeline) == 2 * (240 + 120) * 48 * 4
    assert report.cost.bytes == sum(f.bytes for f in report.scope.flows)


def test_failed_attacks_are_findings(report: Report) -> None:
    assert any(finding.id.startswith("gap/broken") for finding in report.residual.findings)


def test_markup_in_names_is_only_text(report: Report) -> None:
    value = json.loads(report.model_dump_json())
    value["title"] = "<script>alert(1)</script>"
    assert "<script>" not in page(value)


def test_a_number_cannot_be_printed_without_its_place() -> None:
    with pytest.raises(TypeError, match="print it with"):
        str(Value({"a": 1.5}).a)
    assert num(Value({"a": [1.5]}).a[0]) == '<data value="1.5" data-key="/a/0">1.5</data>'
    assert "not measured" in num(Value({"a": None}).a)
    with pytest.raises(TypeError):
        num(Value({"a": "1"}).a)


@pytest.mark.parametrize(
    ("number", "style", "words"),
    [(0.98765, "percent", "98.8%"), (1234567, "count", "1\u202f234\u202f567"), (0.0001, "p", "< 0.001"),
     (2_820_000, "bytes", "2.82\u00a0MB"), (12, "bytes", "12\u00a0B"), (0.01234, "plain", "0.0123")],
)  # fmt: skip
def test_numbers_for_reading(number: float, style: str, words: str) -> None:
    assert shown(number, style) == words


def test_the_files_are_small_and_made_fast(report: Report, tmp_path: Path) -> None:
    import time

    began = time.process_time()
    files = write(report, tmp_path)
    assert time.process_time() - began < 5
    names = ["report.json", "report.schema.json", "report.html", "MODEL_CARD.md", "dpia.md"]
    assert [file.name for file in files] == names
    assert sum(file.stat().st_size for file in files) < 3_000_000


def test_no_report_of_transcripts_that_were_not_attacked(finished: Finished, audited: Audit, tmp_path: Path) -> None:
    assert finished.folder is not None
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    audited.save(folder)
    assert len(reported(folder)) == 5
    index = folder / "parties" / "compute" / "transcript" / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"compute"', b'"Compute"', 1) + b" ")
    with pytest.raises(RunError, match=r"transcripts are no longer those that were attacked|index\.jsonl"):
        reported(folder)


def test_metrics_are_explained_in_the_page(html: str) -> None:
    assert all(metric.title in html for metric in METRICS.values())


def test_the_model_card_and_the_dpia_say_the_same_and_leave_blanks(report: Report, tmp_path: Path) -> None:
    files = {file.name: file for file in write(report, tmp_path)}
    card, dpia = files["MODEL_CARD.md"].read_text(), files["dpia.md"].read_text()
    accuracy = report.utility.results[0].accuracy
    assert accuracy is not None
    assert shown(accuracy) in card
    assert card.count("____") == 3
    assert dpia.count("____") == len(report.purpose) + len(report.sign_off.fields)
    for finding in report.residual.findings:
        assert finding.title in card
        assert finding.title in dpia
    rows = [line for line in (card + dpia).splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert "&#" not in card + dpia


def test_the_pdf_is_tagged_and_in_its_language(html: str) -> None:
    from io import BytesIO

    import pikepdf

    from audits.report.pdf import pdf

    with pikepdf.open(BytesIO(pdf(html))) as made:
        assert made.Root.MarkInfo.Marked
        assert str(made.Root.Lang) == "en"
        assert "/StructTreeRoot" in made.Root
        assert b"pdfuaid" in made.Root.Metadata.read_bytes()


def test_a_drawing_in_a_pdf_has_its_own_colours(html: str) -> None:
    from audits.report.pdf import coloured

    made = coloured(html)
    assert "var(--" not in re.sub(r"<head>.*</head>", "", made, flags=re.S)
    assert made.count("<style>") == html.count("<svg") + 1
