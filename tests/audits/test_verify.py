"""Whatever is changed, deleted, put in another order or cut short is found, and named by its file and line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from audits import seal as seals
from audits.finished import Finished
from audits.privacy import Audit
from audits.report.assemble import report_of
from audits.report.write import write
from audits.seal import MANIFEST, SEALS, evidence_files, load, seal
from audits.verify import Chained, _file, _log, verify
from channels import Identity
from secsplit.auditlog import FILE
from secsplit.errors import RunError
from secsplit.journal import START, link_of
from secsplit.rundir import RunDir

Lines = list[bytes]


@pytest.fixture(scope="module")
def sealed(finished: Finished, audited: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert finished.folder is not None
    write(report_of(finished, audited), finished.folder)
    folder = Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("sealed") / "run"))
    for name in ("hospital-a", "compute"):
        seal(folder, Identity.generate(name))
    return folder


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "run"))


def wrong(folder: Path) -> dict[str, str]:
    return {check.what: check.text for check in verify(folder) if not check.ok}


def test_what_was_sealed_is_found_whole(sealed: Path) -> None:
    checks = verify(sealed)
    assert all(check.ok for check in checks), wrong(sealed)
    assert {"log of compute", "heads told to compute", "report.json", "seal of compute"} <= {c.what for c in checks}


CHANGES: dict[str, tuple[Callable[[Lines], object], int]] = {
    "altered": (lambda lines: lines.__setitem__(4, lines[4] + b" "), 5),
    "deleted": (lambda lines: lines.pop(4), 5),
    "in another order": (lambda lines: lines.__setitem__(slice(4, 6), lines[4:6][::-1]), 5),
    "cut short": (lambda lines: lines.__setitem__(slice(len(lines) - 3, None), [b""]), -1),
    "added to": (lambda lines: lines.insert(4, b"another line"), 5),
}


def edit(path: Path, change: Callable[[Lines], object]) -> int:
    """Change a file's lines; how many there are then."""
    lines = path.read_bytes().split(b"\n")
    change(lines)
    path.write_bytes(b"\n".join(lines))
    return len(lines)


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", ["report.json", "audit.json"])
def test_a_report_that_was_changed_is_named_by_its_line(copy: Path, what: str, name: str) -> None:
    change, line = CHANGES[what]
    left = edit(copy / name, change)
    text = wrong(copy)[name]
    assert text.startswith(f"{copy / name}:{line if line > 0 else left}:")


@pytest.mark.parametrize("what", CHANGES)
def test_a_log_that_was_changed_is_named_by_its_line(copy: Path, what: str) -> None:
    path = copy / "parties" / "compute" / FILE
    change, line = CHANGES[what]
    left = edit(path, change)
    text = wrong(copy)["log of compute"]
    assert text.startswith(f"{path}:{line if line > 0 else left - 1}:")


ANYWHERE: dict[str, Callable[[Lines, int], object]] = {
    "altered": lambda lines, i: lines.__setitem__(i, lines[i].replace(b":", b";", 1)),
    "deleted": lambda lines, i: lines.pop(i),
    "exchanged with the next": lambda lines, i: lines.__setitem__(slice(i, i + 2), lines[i : i + 2][::-1]),
    "cut off here": lambda lines, i: lines.__setitem__(slice(i, None), [b""]),
    "cut in the middle": lambda lines, i: lines.__setitem__(slice(i, None), [lines[i][: len(lines[i]) // 2]]),
}


@pytest.mark.parametrize("what", ANYWHERE)
def test_any_line_of_a_log_may_be_the_one(copy: Path, what: str) -> None:
    """At every line; what follows another party's word is named too, and never is nothing wrong."""
    path = copy / "parties" / "compute" / FILE
    whole = path.read_bytes()
    lines = whole.split(b"\n")[:-1]
    for i in range(len(lines)):
        changed = [*lines, b""]
        ANYWHERE[what](changed, i)
        if changed == [*lines, b""] or (what == "exchanged with the next" and i == len(lines) - 1):
            continue
        path.write_bytes(b"\n".join(changed))
        logs: dict[str, Chained] = {}
        run = RunDir.open(copy)
        (check,) = _log(run, run.party("compute"), logs)
        assert not check.ok, (what, i)
        named = int(check.text.removeprefix(f"{path}:").split(":")[0])
        assert named in (i, i + 1, i + 2), (what, i, check.text)


@pytest.mark.parametrize("what", ANYWHERE)
def test_any_line_of_the_report_may_be_the_one(copy: Path, what: str) -> None:
    path, manifest = copy / "report.json", load(copy)
    lines = path.read_bytes().split(b"\n")
    for i in range(0, len(lines) - 1, 41):
        changed = list(lines)
        ANYWHERE[what](changed, i)
        if changed == lines:
            continue
        path.write_bytes(b"\n".join(changed))
        check = _file(copy, "report.json", manifest)
        assert not check.ok, (what, i)
        named = int(check.text.removeprefix(f"{path}:").split(":")[0])
        assert i + 1 <= named <= i + 2 or lines[i] == lines[named - 1], (what, i, check.text)


def rechained(payloads: Lines) -> bytes:
    """The lines of a forger who makes the chain anew."""
    lines, link = [], START
    for payload in payloads:
        link = link_of(link, payload)
        lines.append(link.encode() + b" " + payload + b"\n")
    return b"".join(lines)


def test_a_log_rewritten_as_a_whole_contradicts_its_peers(copy: Path) -> None:
    path = copy / "parties" / "hospital-b" / FILE
    payloads = [line.partition(b" ")[2] for line in path.read_bytes().splitlines()]
    told = next(i for i, payload in enumerate(payloads) if b'"told"' in payload)
    payloads[told] = payloads[told].replace(b'"lines":', b'"lines":1', 1)
    path.write_bytes(rechained(payloads))
    found = wrong(copy)
    assert "log of hospital-b" not in found
    assert f"{path}:" in found["heads told to compute"]


def test_weights_that_were_not_trained_are_named(copy: Path) -> None:
    path = copy / "parties" / "compute" / "weights" / "top" / "epoch-001.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0] += 1
    save_file(weights, path)
    assert "epoch-001.safetensors is not what was trained" in wrong(copy)["log of compute"]


def test_metrics_that_were_not_reached_are_named(copy: Path) -> None:
    path = copy / "parties" / "compute" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"test_accuracy": 0.', '"test_accuracy": 0.9', 1))
    found = wrong(copy)
    assert "its metrics of epoch 0 are not those of" in found["log of compute"]
    assert found["parties/compute/metrics.jsonl"].startswith(f"{path}:1:")


def test_a_missing_file_log_or_seal_is_named(copy: Path) -> None:
    (copy / "audit.json").unlink()
    (copy / "parties" / "compute" / FILE).unlink()
    found = wrong(copy)
    assert found["audit.json"].endswith("it is missing")
    assert found["log of compute"].endswith("it is missing")
    shutil.rmtree(copy / SEALS)
    assert "nobody's signature is here" in wrong(copy)[SEALS]


def test_a_manifest_made_anew_is_not_signed(copy: Path) -> None:
    edit(copy / "report.json", CHANGES["altered"][0])
    shutil.rmtree(copy / SEALS)
    seal(copy, Identity.generate("compute"))  # a forger with a key of its own
    assert wrong(copy) == {}
    honest = Identity.generate("compute").public.fingerprint
    assert any(honest in check.text and not check.ok for check in verify(copy, [honest]))


def test_a_changed_manifest_breaks_every_seal(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]["audit.json"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert {"seal of compute", "seal of hospital-a"} <= set(wrong(copy))


def test_another_site_s_name_on_a_seal_is_refused(copy: Path) -> None:
    (copy / SEALS / "compute.json").rename(copy / SEALS / "hospital-b.json")
    assert "signed by 'compute'" in wrong(copy)["seal of hospital-b"]


def test_a_manifest_leads_to_no_file_outside(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["../../secret"] = manifest["files"]["audit.json"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert "is no file of this folder" in wrong(copy)["../../secret"]


def test_who_seals_after_a_change_is_told(copy: Path) -> None:
    edit(copy / "report.json", CHANGES["altered"][0])
    with pytest.raises(RunError, match="the evidence changed since compute, hospital-a sealed it"):
        seal(copy, Identity.generate("hospital-b"))


def test_nothing_is_changed_by_looking(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    verify(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
    assert "noise.key" not in " ".join(evidence_files(copy))


def shuffled(path: Path, change: Callable[[Lines], Lines]) -> None:
    """Change a log's payloads, and make the chain anew."""
    payloads = [line.partition(b" ")[2] for line in path.read_bytes().splitlines()]
    path.write_bytes(rechained(change(payloads)))


def largest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


LOG = f"parties/compute/{FILE}"
SPOILT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "the last word of a peer dropped": (
        lambda at: shuffled(at / LOG, lambda p: [*p[:-2], p[-1]]), "log of compute", "nothing that",
    ),
    "an epoch dropped": (lambda at: shuffled(at / LOG, lambda p: [*p[:-4], p[-1]]), "log of compute", "it tells of"),
    "metrics that are none": (
        lambda at: (at / "parties/compute/metrics.jsonl").write_text("garbage\n"), "log of compute", "not metrics",
    ),
    "weights cut short": (
        lambda at: next((at / "parties/compute/weights").rglob("epoch-001*")).write_bytes(b"\0" * 40),
        "log of compute", "cannot be read",
    ),
    "no digest": (lambda at: (at / "digest").unlink(), "digest", "missing"),
    "a transcript": (
        lambda at: flipped(largest(at / "parties/compute/transcript")),
        "transcripts", "not the transcripts that were attacked",
    ),
    "a transcript emptied": (
        lambda at: largest(at / "parties/compute/transcript").write_bytes(b""), "transcripts", "truncated",
    ),
    "the page": (
        lambda at: (at / "report.html").write_text((at / "report.html").read_text().replace("</html>", "</html >")),
        "report.html", "not the line that was sealed",
    ),
    "evidence slipped in": (lambda at: (at / "dp-audit.json").write_text("{}"), "dp-audit.json", "added after"),
    "what was spent": (
        lambda at: (at / "parties/hospital-a/privacy.json").write_text(
            (at / "parties/hospital-a/privacy.json").read_text().replace("no finite epsilon", "epsilon 1")
        ),
        "ledger of hospital-a", "not what",
    ),
    "the ledger": (
        lambda at: edit(at / "parties/hospital-a/ledger.jsonl", lambda lines: lines.pop(1)),
        "ledger of hospital-a", "ledger.jsonl:2: the line does not fit the chain",
    ),
    "facts of channels that are none": (
        lambda at: (at / "parties/compute/channel.json").write_text("{{"),
        "parties/compute/channel.json", "added after",
    ),
    "a stranger's folder": (
        lambda at: shutil.copytree(at / "parties/compute", at / "parties/evil"), "log of evil", "written by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_named_and_never_a_traceback(copy: Path, what: str) -> None:
    spoil, where, words = SPOILT[what]
    spoil(copy)
    assert words in wrong(copy)[where]


def test_a_seal_by_another_identity_than_the_channels_knew(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forger who seals everything anew under the parties' names is betrayed by what their peers met."""
    facts = {"compute": {"channels": [{"peer_name": "compute", "peer_fingerprint": "babab-babab"}]}}
    (copy / "parties" / "hospital-a" / "channel.json").write_text(json.dumps(facts))
    shutil.rmtree(copy / SEALS)
    with pytest.raises(RunError, match="the channels of the run knew its party 'compute' as babab-babab"):
        seal(copy, Identity.generate("compute"))
    seal(copy, Identity.generate("auditor"))
    assert "seal of auditor" not in wrong(copy)
    shutil.rmtree(copy / SEALS)
    monkeypatch.setattr(seals, "met", lambda folder: {})
    seal(copy, Identity.generate("compute"))
    assert "the channels of the run knew babab-babab" in wrong(copy)["seal of compute"]


def test_who_has_not_signed_is_told(copy: Path) -> None:
    assert any(check.what == SEALS and "hospital-b" in check.text for check in verify(copy))
