"""The linter: every wrong example is refused for its own reason, the right ones pass, and what is open is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from secsplit.check import Checkup, check
from secsplit.errors import RunError
from secsplit.run import load

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = [path for path in EXAMPLES.glob("*.toml") if "[parties" in path.read_text()]
WRONG = {
    "noise-without-clip": "noise without clipping is not differential privacy",
    "no-noise": "adds no noise",
    "wrong-edge": "did you mean 'bottom->top'",
    "one-epoch-as-total": "That is the epsilon of one epoch, and 10 epochs compose. The run will spend 7.511",
    "zero-out-as-replace-one": "half the sensitivity",
    "amplified": "Amplification by subsampling needs a sampling pattern that the adversary cannot see",
    "bottom-learns": "bottom learns from these records without DP-SGD (7.51",
    "dp-sgd-for-messages": "protects records against whoever later sees the weights",
    "label-noise-for-inputs": "inputs are exactly as exposed",
    "u-shape-hides-labels": "clustering them recovers labels",
    "dropout-is-private": "is no differential privacy",
    "audit-as-proof": "never an upper one",
    "batch-norm": "bn1 (BatchNorm2d)",
    "delta-too-large": "not below 1/n",
    "over-budget": "would stop in the middle",
}


def test_every_wrong_example_is_tested() -> None:
    assert {path.stem for path in (EXAMPLES / "wrong").glob("*.toml")} == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_examples_are_refused(name: str) -> None:
    path = EXAMPLES / "wrong" / f"{name}.toml"
    assert path.read_text().startswith("# WRONG: ")
    try:
        told = " ".join(refusal.text for refusal in check(load(path)).refusals)
    except RunError as error:
        told = str(error)
    assert WRONG[name] in told


@pytest.mark.parametrize("name", ["dp-cut", "dp-sgd-cut"])
def test_right_examples_pass(name: str) -> None:
    found = check(load(EXAMPLES / f"{name}.toml"))
    assert found.refusals == ()
    assert not any("no finite epsilon" in gap.text for gap in found.gaps)


@pytest.mark.parametrize("path", sorted(RUNS), ids=lambda path: path.stem)
def test_every_example_can_be_looked_at(path: Path) -> None:
    found = check(load(path), build=False)
    assert found.links
    assert found.gaps


def open_in(name: str, *overrides: str) -> Checkup:
    return check(load(EXAMPLES / f"{name}.toml", overrides), build=False)


def gaps_of(found: Checkup) -> str:
    return "\n".join(f"{gap.about}: {gap.text}" for gap in found.gaps)


def test_says_what_is_open_in_the_plain_example() -> None:
    told = gaps_of(open_in("vanilla"))
    for expected in (
        "smashed messages show server the inputs of client's records",
        "client sends every training label to server in clear",
        "evaluation sends true test labels",
        "go to the next client without DP-SGD",
        "who takes part",
    ):
        assert expected in told


def test_label_gradients_are_named() -> None:
    told = gaps_of(open_in("vertical"))
    assert "gradients to" in told
    assert "carry the labels" in told


def test_links_name_what_acts_on_them() -> None:
    found = {(link.crossing.kind.value, link.covered) for link in open_in("dp-cut").links}
    assert found == {("smashed", ("gaussian",)), ("cut-grad", ()), ("labels", ("label-dp",))}


def test_weak_forms_are_named() -> None:
    told = gaps_of(open_in("dp-cut", 'defenses=[{kind="frozen", segment="bottom"}, {kind="gaussian", '
                                     'edge="bottom->top", clip=1.0, sigma=0.1, noise="float", adjacency="zero-out"}]',
                           "claims=[]"))  # fmt: skip
    assert "low bits may betray" in told
    assert "half the sensitivity" in told
    assert "vacuous as a guarantee" in told


CLAIM = 'claims=[{{protects="{0}", against="{1}"{2}}}]'


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (CLAIM.format("inputs", "srver", ", epsilon=30.0"), "did you mean 'server'"),
        (CLAIM.format("inputs", "server", ', epsilon=30.0, whose="server"'), "no role that holds inputs"),
        (CLAIM.format("inputs", "server", ', epsilon=30.0, adjacency="zero-out"'), "accounted for replace-one"),
        (CLAIM.format("inputs", "server", ', epsilon=30.0, because=["marvell"]'), "no defense of kind 'marvell'"),
        (CLAIM.format("inputs", "server", ', epsilon=30.0, because=["dfil"]'), "unbiased attackers"),
        (CLAIM.format("inputs", "server", ""), "bounds nothing"),
        (CLAIM.format("labels", "server", ", epsilon=1.0"), "The run will spend 2"),
    ],
)
def test_other_claims_are_refused(claim: str, told: str) -> None:
    assert told in " ".join(refusal.text for refusal in open_in("dp-cut", claim).refusals)


def test_an_rdp_number_for_the_bare_sigma_is_called_by_its_name() -> None:
    from secsplit.accounting import rdp_epsilon

    epsilon = round(rdp_epsilon([(1 / 4, 10)], 1e-5), 3)
    defenses = (
        'defenses=[{kind="frozen", segment="bottom"}, {kind="gaussian", edge="bottom->top", clip=1.0, sigma=4.0}]'
    )
    found = open_in("dp-cut", defenses, "train.epochs=10", CLAIM.format("inputs", "server", f", epsilon={epsilon}"))
    assert "RDP number for noise multiplier sigma" in found.refusals[0].text


def test_a_true_claim_passes() -> None:
    assert open_in("dp-cut", CLAIM.format("inputs", "server", ", epsilon=24.4")).refusals == ()
