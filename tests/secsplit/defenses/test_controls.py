"""The measured controls and heuristics: each does to a message what it says, and none claims to prove anything."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from secsplit.defenses import SPECS, AnySpec, Noise, Outgoing
from secsplit.defenses.base import Defense
from secsplit.defenses.confidence import ConfidenceSpec
from secsplit.defenses.nopeek import distance_correlation
from secsplit.message import Kind, Stamp

SOURCE = Noise.predictable_for_testing_only(0)
COINS = torch.Generator().manual_seed(0)


def built(kind: str, **options: object) -> Defense:
    spec = SPECS[kind].model_validate({"kind": kind, "edge": "bottom->top", **options})
    return spec.build(SOURCE, {"y": 2})


def out(h: Tensor, kind: Kind = Kind.CUT_GRAD, *, training: bool = True) -> Outgoing:
    return Outgoing(kind, "bottom->top", Stamp(training=training), h, None, torch.arange(len(h)))


def rows(n: int = 400, d: int = 50) -> Tensor:
    """Rows whose norms differ by a factor of a hundred."""
    g = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    return g * torch.logspace(-1, 1, n).unsqueeze(1)


def test_iso_adds_t_times_the_largest_norm() -> None:
    g = rows()
    added = built("iso", t=3.0).outgoing(out(g)) - g
    assert float(added.norm(dim=1).square().mean().sqrt()) == pytest.approx(3 * float(g.norm(dim=1).max()), rel=0.03)


def test_max_norm_makes_expected_norms_alike_and_keeps_directions() -> None:
    g = rows(2000)
    left = built("max-norm").outgoing(out(g))
    parallel = torch.nn.functional.cosine_similarity(left, g, dim=1).abs()
    assert float(parallel.min()) > 0.999
    thirds = left.norm(dim=1).square().view(4, -1).mean(1)
    assert float(thirds.max() / thirds.min()) < 1.5
    assert float(thirds.mean()) == pytest.approx(float(g.norm(dim=1).max()) ** 2, rel=0.2)


def test_normalising_makes_norms_exactly_alike() -> None:
    g = rows()
    g[3] = 0
    left = built("max-norm", mode="normalise").outgoing(out(g))
    norms = left.norm(dim=1)
    assert float(norms[3]) == 0
    assert torch.allclose(norms[4:], norms[5])


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_prune_keeps_the_largest(keep: float) -> None:
    g = rows()
    by_batch, by_row = (
        built("prune", keep=keep, by=by, message="cut-grad").outgoing(out(g)) for by in ("batch", "row")
    )
    assert int((by_batch != 0).sum()) == round(keep * g.numel())
    assert set((by_row != 0).sum(1).tolist()) == {round(keep * g.shape[1])}
    assert float(g.abs()[by_batch == 0].max()) <= float(g.abs()[by_batch != 0].min()) if keep < 1 else True


def test_quantise_leaves_so_many_levels() -> None:
    h = torch.rand(30, 200).requires_grad_()
    left = built("quantise", levels=4).outgoing(out(h, Kind.SMASHED))
    assert all(len(row.unique()) <= 4 for row in left.detach())
    assert torch.allclose(left.detach().amax(1), h.detach().amax(1))
    step = (h.detach().amax(1) - h.detach().amin(1)) / 3
    assert bool(((left - h).detach().abs().amax(1) <= step / 2 + 1e-6).all())
    left.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(h.grad, torch.ones_like(h))  # type: ignore[arg-type]


def test_quantise_stays_finite_on_constant_rows() -> None:
    assert torch.equal(built("quantise", levels=2).outgoing(out(torch.ones(3, 4), Kind.SMASHED)), torch.ones(3, 4))


def test_sign_leaves_signs() -> None:
    g = rows()
    left = built("sign", message="cut-grad").outgoing(out(g))
    assert torch.equal(left.sign(), g.sign())
    assert len(left.abs().unique()) == 1


@pytest.mark.parametrize("training", [True, False])
def test_dropout_drops_in_training_and_inference(training: bool) -> None:
    h = torch.ones(300, 100)
    left = built("dropout", p=0.3).outgoing(out(h, Kind.SMASHED, training=training))
    assert float((left == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(left.mean()) == pytest.approx(1.0, abs=0.02)


def test_confidences_are_rounded_or_withheld_at_inference_only() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(2))
    rounded, topped = built("confidence", decimals=1), built("confidence", top=1)
    for defense in (rounded, topped):
        assert torch.equal(defense.outgoing(out(logits, Kind.OUTPUT)), logits)
    left = rounded.outgoing(out(logits, Kind.OUTPUT, training=False)).exp()
    assert float((left * 10 - (left * 10).round()).abs().max()) < 1e-4
    alone = topped.outgoing(out(logits, Kind.OUTPUT, training=False))
    assert torch.equal(alone.argmax(1), logits.argmax(1))
    assert set((alone.exp() > 1e-5).sum(1).tolist()) == {1}
    with pytest.raises(ValidationError, match="one of them"):
        ConfidenceSpec(edge="loss")


def test_distance_correlation_knows_independence_and_identity() -> None:
    x = torch.randn(300, 5, generator=COINS)
    assert float(distance_correlation(x, x)) == pytest.approx(1, abs=1e-4)
    assert float(distance_correlation(x, 3 * x + 1)) == pytest.approx(1, abs=1e-4)
    assert float(distance_correlation(x, torch.randn(300, 5, generator=COINS))) < 0.25
    h = x[:, :2].clone().requires_grad_()
    distance_correlation(x, h).backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert bool(torch.isfinite(h.grad).all())


def test_distance_correlation_equals_the_loop() -> None:
    """Szekely, Rizzo, Bakirov 2007, equations 2.8 to 2.10, written out."""
    x, h = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    n = len(x)

    def centred(rows: Tensor) -> list[list[float]]:
        d = [[float((rows[k] - rows[m]).norm()) for m in range(n)] for k in range(n)]
        mean = [sum(row) / n for row in d]
        return [[d[k][m] - mean[k] - mean[m] + sum(mean) / n for m in range(n)] for k in range(n)]

    a, b = centred(x), centred(h)
    pairs = [(k, m) for k in range(n) for m in range(n)]
    covariance, va, vb = (sum(p[k][m] * q[k][m] for k, m in pairs) / n**2 for p, q in ((a, b), (a, a), (b, b)))
    assert float(distance_correlation(x, h)) == pytest.approx((covariance / (va * vb) ** 0.5) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kind", [k for k, spec in SPECS.items() if spec.guarantee not in ("dp", "label-dp")])
def test_no_control_claims_a_bound(kind: str) -> None:
    examples: dict[str, dict[str, object]] = {
        "frozen": {"segment": "bottom"}, "iso": {"t": 1.0}, "marvell": {"s": 1.0}, "nopeek": {"a": 0.5},
        "prune": {"keep": 0.5}, "quantise": {"levels": 4}, "dropout": {"p": 0.5}, "confidence": {"top": 1},
    }  # fmt: skip
    place = {} if kind == "frozen" else {"edge": "bottom->top"}
    spec: AnySpec = SPECS[kind].model_validate({"kind": kind, **place, **examples.get(kind, {})})  # type: ignore[assignment]
    defense = spec.build(SOURCE, {"y": 2})
    for message in Kind:
        assert defense.bounds(out(torch.zeros(2, 2), message)) == ()
    assert defense.updates("bottom") == ()
