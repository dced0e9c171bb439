"""Transcripts spill in bounded memory, come back the same, and a damaged one is named."""

import pytest
import torch

from secsplit.errors import RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.transcript import INDEX, Transcript


def messages(count: int) -> list[Message]:
    coins = torch.Generator().manual_seed(0)
    return [
        Message(Kind.SMASHED, "a->b", Stamp(step), {"h": torch.randn(8, 16, generator=coins)}, {"n": step})
        for step in range(count)
    ]


def same(record, message: Message) -> bool:
    return (
        (record.kind, record.edge, record.stamp, dict(record.facts))
        == (message.kind, message.edge, message.stamp, dict(message.facts))
        and all(torch.equal(record.tensors[k], v) for k, v in message.tensors.items())
        and record.shapes["h"] == ("float32", (8, 16))
    )


@pytest.mark.parametrize("shard_bytes", [1, 1500, 1 << 30])
def test_what_is_spilled_comes_back(tmp_path, shard_bytes: int) -> None:
    sent = messages(7)
    transcript = Transcript("p", folder=tmp_path / "t", shard_bytes=shard_bytes)
    for message in sent:
        transcript.append("sent", "peer", message)
    transcript.flush()
    back = Transcript.load(tmp_path / "t", "p")
    assert len(back) == 7
    assert all(same(r, m) and r.direction == "sent" for r, m in zip(back, sent, strict=True))
    assert all(same(r, m) for r, m in zip(transcript, sent, strict=True))
    assert len(list((tmp_path / "t").glob("*.safetensors"))) == {1: 7, 1500: 3, 1 << 30: 1}[shard_bytes]


def test_waiting_memory_is_bounded(tmp_path) -> None:
    transcript = Transcript("p", folder=tmp_path / "t", shard_bytes=2000)
    for message in messages(50):
        transcript.append("received", "peer", message)
        assert transcript._waiting_bytes < 2000


def test_a_transcript_in_memory_can_be_saved(tmp_path) -> None:
    transcript, sent = Transcript("p"), messages(3)
    for message in sent:
        transcript.append("received", "peer", message)
    transcript.save(tmp_path / "t")
    assert all(same(r, m) for r, m in zip(Transcript.load(tmp_path / "t"), sent, strict=True))


def test_only_every_nth_step_is_recorded() -> None:
    transcript = Transcript("p", every=3)
    for message in messages(7):
        transcript.append("sent", "peer", message)
    assert [record.stamp.step for record in transcript] == [0, 3, 6]


def damage_line(folder) -> None:
    index = folder / INDEX
    index.write_bytes(index.read_bytes().replace(b'"smashed"', b'"other"', 1))


def remove_shard(folder) -> None:
    (folder / "00000.safetensors").unlink()


def cut_shard(folder) -> None:
    shard = folder / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


def climb_out(folder) -> None:
    index = folder / INDEX
    index.write_bytes(index.read_bytes().replace(b"00000.safetensors", b"../00000.safetensors"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_line, r"index.jsonl:1: not a transcript line"),
        (remove_shard, r"00000.safetensors: cannot read record 0"),
        (cut_shard, r"00000.safetensors: cannot read record 0"),
        (climb_out, r"not a plain file name"),
        (lambda folder: (folder / INDEX).unlink(), "no transcript index here"),
    ],
)
def test_damage_is_named(tmp_path, damage, reason: str) -> None:
    transcript = Transcript("p", folder=tmp_path / "t")
    for message in messages(2):
        transcript.append("sent", "peer", message)
    transcript.flush()
    damage(tmp_path / "t")
    with pytest.raises(RunError, match=reason):
        _ = [record.tensors for record in Transcript.load(tmp_path / "t")]
