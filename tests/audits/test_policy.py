"""A policy says what it asks; what it cannot mean is refused, with the rule, the value and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from audits.policy import EvidenceRule, load
from secsplit.errors import RunError

HEAD = 'name = "p"\n'
RULE = HEAD + '[[rules]]\nid = "r"\n'

NO_NUMBERS = ("true", '"0.2"', "nan", "inf")  # thresholds that would let everything pass, or nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "rules: missing"),
        (HEAD + "rules = []", "rules"),
        (RULE, "rule 'r': check: missing; one of leakage"),
        (RULE + 'check = "leakeage"\n', "rule 'r': check: no such check 'leakeage'; did you mean 'leakage'"),
        (RULE + 'check = "leakage"\ngoal = "label"\nmetric = "leak-acu"\nmax = 0.6\n',
         "rule 'r': metric: got 'leak-acu'; no such metric; did you mean 'leak-auc'"),
        (RULE + 'check = "leakage"\ngoal = "label"\nmin = 0.6\n', "metric 'score' needs 'max'"),
        (RULE + 'check = "leakage"\ngoal = "input"\nmetric = "mse"\nmax = 0.6\n', "metric 'mse' needs 'min'"),
        (RULE + 'check = "leakage"\ngoal = "labels"\nmax = 0.6\n', "goal: got 'labels'"),
        (RULE + 'check = "utility"\nmni = 0.6\n', "rule 'r': mni: unknown key; did you mean 'min'"),
        (RULE + 'check = "utility"\nmin = 1.5\n', "min: got 1.5"),
        (RULE + 'check = "utility"\nmin = 0.5\n[[rules]]\nid = "r"\ncheck = "channel"\n', "two rules have the id 'r'"),
        (HEAD + '[[rules]]\nid = "Not An Id"\ncheck = "channel"\n', "id: got 'Not An Id'"),
        *((RULE + f'check = "leakage"\ngoal = "label"\nmax = {value}\n', "max: got") for value in NO_NUMBERS),
        *((RULE + f'check = "epsilon"\nmax = {value}\n', "max: got") for value in NO_NUMBERS),
        ("name = ", "not a TOML policy"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(RunError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "Tuple should have" not in str(caught.value) or text == HEAD + "rules = []"
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such policy file"):
        load(tmp_path / "none.toml")


def test_evidence_is_asked_for_by_every_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RULE + 'check = "channel"\n')
    assert isinstance(load(path).all[0], EvidenceRule)
    path.write_text(RULE + 'check = "evidence"\n')
    assert len(load(path).all) == 1


def test_rules_say_what_they_ask() -> None:
    asked = [rule.asks for rule in load(Path(__file__).parents[2] / "examples" / "policy.toml").all]
    assert "score of every attack on the label is at most 0.25" in asked
