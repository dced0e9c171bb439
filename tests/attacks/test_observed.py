"""Messages of batches to rows, against going through every message by hand."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.observed import Observed, find, latest
from secsplit.message import Kind, Message, Stamp
from secsplit.threat import View
from secsplit.topologies import vanilla
from secsplit.transcript import Transcript


def seen(epochs=3, rows=10, batch=4, casts=2, folder=None, seed=0):
    """A view of several epochs over two casts, and every message about each row, oldest first."""
    coins = torch.Generator().manual_seed(seed)
    transcript, order, history, step = Transcript("server", folder=folder, shard_bytes=64), {}, {}, 0
    for epoch in range(epochs):
        for cast in range(casts):
            for at in torch.randperm(rows, generator=coins).split(batch):
                h = torch.randn(len(at), 3, 2, generator=coins)
                stamp = Stamp(step, 0, epoch, cast)
                order[step] = at
                transcript.append("received", "client", Message(Kind.SMASHED, "bottom->top", stamp, {"h": h}))
                for i, p in enumerate(at.tolist()):
                    history.setdefault((cast, p), []).append((step, h[i]))
                step += 1
    view = View(vanilla(), ("server",), {"server": transcript}, {}, {}, {"y": 10}, lambda s: order[s.step])
    return view, history


@pytest.mark.parametrize("average", [1, 2, 3, 9])
@pytest.mark.parametrize("limit", [0, 1, 7, 100])
def test_latest_is_the_mean_of_the_last_messages(limit, average):
    view, history = seen()
    got = latest(view, Kind.SMASHED, edge="bottom->top", limit=limit, average=average)
    assert len(got) == min(limit or 20, 20)
    assert len(set(zip(got.cast.tolist(), got.position.tolist(), strict=True))) == len(got)
    for i in range(len(got)):
        told = history[got.cast[i].item(), got.position[i].item()][-average:]
        assert got.step[i] == told[-1][0]
        torch.testing.assert_close(got.values[i], torch.stack([h for _, h in told]).mean(0))
    newest = sorted((told[-1][0] for told in history.values()), reverse=True)
    assert got.step.tolist() == newest[: len(got)]


def test_only_the_messages_that_count_are_read(tmp_path, monkeypatch):
    view, history = seen(epochs=20, folder=tmp_path)
    reads = []
    from secsplit import transcript

    inner = transcript._Loader.__call__
    monkeypatch.setattr(transcript._Loader, "__call__", lambda self: reads.append(self.index) or inner(self))
    got = latest(view, Kind.SMASHED, edge="bottom->top", limit=5)
    assert len(got) == 5
    assert len(reads) == 2
    torch.testing.assert_close(got.values[0], history[got.cast[0].item(), got.position[0].item()][-1][1])


def test_rows_are_found_by_cast_and_position():
    at = torch.tensor([3, 1, 2])
    among = Observed(torch.tensor([0, 0, 1]), at, at, at)
    wanted = Observed(torch.tensor([1, 1, 0]), torch.tensor([2, 3, 1]), at, at)
    assert find(wanted, among).tolist() == [2, -1, 1]


def test_nothing_seen_is_not_applicable():
    view, _ = seen()
    with pytest.raises(NotApplicable, match="no cut-grad message was received on 'bottom->top'"):
        latest(view, Kind.CUT_GRAD, edge="bottom->top")
