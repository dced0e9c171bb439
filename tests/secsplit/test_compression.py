"""What crosses a cut in fewer bytes: how near it comes back, what gradient it passes, and what a peer may not claim."""

import copy

import pytest
import torch

from secsplit.compression import check, compressed, kept, masked, restored
from secsplit.drive import simulate
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message
from secsplit.party import Party
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.schedule import Turn
from secsplit.topologies import named
from secsplit.transcript import Transcript
from tests.secsplit.graphs import gradients, modules_of, parties_of, records_of, run_of, unsplit_loss

COINS = torch.Generator().manual_seed(0)
H = torch.randn(6, 4, 5, generator=COINS)


def there_and_back(codec: str, keep: float = 0.3) -> torch.Tensor:
    made, facts = compressed(codec, keep, {"h": H})
    check(codec, keep, made, facts)
    return restored(made, facts)["h"]


def run_with(topology, compression: dict[str, object], **train) -> Run:
    plain = run_of(topology, **train)
    return Run.of(parse({**plain.file.model_dump(exclude_none=True), "compression": [compression]}), topology)


@pytest.mark.parametrize(("codec", "error"), [("float16", 5e-4), ("bfloat16", 4e-3)])
def test_half_precision_is_torch_s(codec: str, error: float) -> None:
    back = there_and_back(codec)
    assert torch.equal(back, H.to(getattr(torch, codec)).float())
    assert ((back - H).abs() / H.abs()).max() < error


def test_eight_bits_are_within_half_a_step_of_each_row_s_range() -> None:
    half = (H.flatten(1).amax(1) - H.flatten(1).amin(1)) / 255 / 2
    assert bool(((there_and_back("int8") - H).flatten(1).abs().amax(1) <= half * (1 + 1e-4)).all())


def test_top_k_keeps_the_largest_entries_and_nothing_else() -> None:
    back = there_and_back("top-k", 0.3).flatten(1)
    for row, mine in zip(H.flatten(1), back, strict=True):
        largest = row.abs().topk(6).indices
        assert torch.equal(mine[largest], row[largest])
        assert int((mine != 0).sum()) == 6


def test_rows_without_range_and_numbers_beyond_half_precision_survive() -> None:
    flat = torch.full((2, 3), 7.0)
    for codec in ("int8", "top-k", "float16"):
        assert torch.equal(restored(*compressed(codec, 1.0, {"h": flat}))["h"], flat)
    assert bool(torch.isfinite(compressed("float16", 1.0, {"h": torch.tensor([[1e30]])})[0]["h"]).all())


@pytest.mark.parametrize(("codec", "part"), [("float16", 0.5), ("bfloat16", 0.5), ("int8", 0.28), ("top-k", 0.2)])
def test_fewer_bytes_cross(codec: str, part: float) -> None:
    big = torch.randn(32, 1000)
    made, _ = compressed(codec, 0.1, {"h": big})
    assert sum(t.nbytes for t in made.values()) <= part * big.nbytes


def test_what_is_no_float_crosses_as_it_is() -> None:
    y = torch.arange(4)
    made, facts = compressed("int8", 0.1, {"y": y})
    assert torch.equal(restored(made, facts)["y"], y)


def test_top_k_passes_no_gradient_to_what_was_left_out() -> None:
    leaf = H.clone().requires_grad_()
    masked(leaf, 0.3).sum().backward()
    assert torch.equal(leaf.grad != 0, there_and_back("top-k", 0.3) != 0)


def test_everything_kept_trains_exactly_as_without_compression() -> None:
    topology = named("u_shaped")
    run = run_with(topology, {"smashed": "top-k", "cut_grad": "top-k", "keep": 1.0}, batch_size=24, evaluate_every=0)
    modules, records = modules_of(topology), records_of(topology)
    oracle = copy.deepcopy(modules)
    simulate(parties_of(run, modules, {0: records}))
    schedule = run.schedule({0: {"train": 24, "test": 24}})
    rows = next(schedule.rows(event) for event in schedule if isinstance(event, Turn))
    unsplit_loss(topology, oracle, records, rows).backward()
    for ours, theirs in zip(gradients(modules.values()), gradients(oracle.values()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8"])
def test_rounded_training_stays_near_and_the_transcript_holds_what_crossed(codec: str) -> None:
    topology = named("vanilla")
    run = run_with(topology, {"edge": "bottom->top", "smashed": codec, "cut_grad": codec}, epochs=2)
    plain, rounded, records = modules_of(topology), modules_of(topology), records_of(topology)
    simulate(parties_of(run_of(topology, epochs=2), plain, {0: records}))
    transcripts = {"server": Transcript("server")}
    simulate(parties_of(run, rounded, {0: records}), transcripts=transcripts)
    for name, module in rounded.items():
        for p, q in zip(module.parameters(), plain[name].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0.2, atol=2e-2)
            assert not torch.equal(p, q)
    smashed = next(r for r in transcripts["server"] if r.kind is Kind.SMASHED)
    assert smashed.load()["h"].dtype in (torch.uint8, torch.float16, torch.bfloat16)
    assert smashed.tensor.dtype == torch.float64  # what the receiver made of it
    assert set(smashed.tensors) == {"h"}


def lies() -> dict[str, tuple[str, object]]:
    made, facts = compressed("top-k", 0.3, {"h": H})
    wild = {**made, "h.at": torch.full_like(made["h.at"], 10**6)}
    huge = {**facts, "h.shape": [1 << 30, 1 << 30]}
    eight, eight_facts = compressed("int8", 0.3, {"h": H})
    return {
        "a place outside": ("top-k", (wild, facts)),
        "a row too large to allocate": ("top-k", (made, huge)),
        "a shape of words": ("top-k", (made, {**facts, "h.shape": ["4"]})),
        "codes without a scale's low end": ("int8", ({k: v for k, v in eight.items() if k != "h.low"}, eight_facts)),
        "another codec": ("int8", (made, facts)),
        "none at all": ("float16", ({"h": H}, {})),
    }


@pytest.mark.parametrize("lie", lies())
def test_what_a_peer_may_not_claim(lie: str) -> None:
    codec, (tensors, facts) = lies()[lie]

    def taken_in():
        check(codec, 0.3, tensors, facts)
        return restored(tensors, facts)

    with pytest.raises(ValueError, match=r"expected|kept entries|outside of its row"):
        taken_in()


def test_a_peer_that_does_not_compress_as_agreed_is_named(monkeypatch) -> None:
    topology = named("vanilla")
    parties = parties_of(run_with(topology, {"smashed": "int8"}), modules_of(topology), {0: records_of(topology)})
    send = Party.send

    def plain(self, to, message, rows):
        if message.kind is Kind.SMASHED:
            message = Message(message.kind, message.edge, message.stamp, dict(restored(message.tensors, message.facts)))
        return send(self, to, message, rows)

    monkeypatch.setattr(Party, "send", plain)
    with pytest.raises(PeerError, match=r"peer 'client': smashed on 'bottom->top': expected it compressed by 'int8'"):
        simulate(parties)


def test_an_edge_that_is_no_cut_is_refused() -> None:
    with pytest.raises(RunError, match=r"compression\.0\.edge: 'bottom->head' is no cut here; did you mean"):
        run_with(named("vanilla"), {"edge": "bottom->head", "smashed": "int8"})


def test_top_k_sends_at_least_one_entry() -> None:
    assert [kept(n, keep) for n, keep in ((3, 0.1), (10, 0.25), (10, 1.0))] == [1, 2, 10]
