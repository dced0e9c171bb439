"""A link's threads end in words that reach the party, whatever ended them: nobody waits for ever."""

import pytest
import torch

from channels import memory_pair
from secsplit import links
from secsplit.errors import PeerError, SplitError
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.message import Kind, Message


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("out of cheese")


def test_what_cannot_be_read_for_a_reason_nobody_foresaw_is_the_peers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = memory_pair()
    inbox = ChannelInbox(timeout=10)
    monkeypatch.setattr(links, "decode", fails)
    ChannelLink("peer", near, inbox)
    far.send(b"meta")
    with pytest.raises(PeerError, match="what it sent cannot be read: RuntimeError: out of cheese"):
        inbox.get()


def test_what_cannot_be_sent_for_a_reason_nobody_foresaw_ends_the_party(monkeypatch: pytest.MonkeyPatch) -> None:
    near, _ = memory_pair()
    inbox = ChannelInbox(timeout=10)
    monkeypatch.setattr(links, "encode", fails)
    link = ChannelLink("peer", near, inbox)
    link.send(Message(Kind.SMASHED, "a->b", tensors={"h": torch.zeros(2)}))
    with pytest.raises(SplitError, match="cannot send to 'peer': RuntimeError: out of cheese"):
        inbox.get()
