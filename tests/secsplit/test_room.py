"""Who has many peers holds little of what they send early; nothing waits for ever, and nobody gets in unasked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from channels.pairs import memory_pair
from secsplit.errors import PeerError
from secsplit.links import ChannelInbox, ChannelLink, say_goodbye
from secsplit.message import Kind, Message, Stamp
from secsplit.room import CROWD, FAVOURED, UNASKED, Room, ask, crowded, large

BIG = UNASKED + 64  # bytes


def batch(step: int = 0) -> Message:
    return Message(Kind.SMASHED, "bottom->top", Stamp(step), {"h": torch.zeros(BIG, dtype=torch.uint8)})


def word(step: int) -> Message:
    return Message(Kind.CONTROL, "census", Stamp(step))


class Crowd:
    """A server with so many clients, each with one link, all with room for so many large messages."""

    def __init__(self, clients: int, room: int) -> None:
        self.inbox = ChannelInbox(timeout=10, room=Room(room * BIG))
        self.names = [f"client-{i}" for i in range(clients)]
        self.server: dict[str, ChannelLink] = {}
        self.clients: dict[str, ChannelLink] = {}
        for name in self.names:
            here, there = memory_pair()
            self.server[name] = ChannelLink(name, here, self.inbox)
            self.clients[name] = ChannelLink("server", there, ChannelInbox(timeout=10), crowded=True)

    def waiting(self) -> int:
        return self.inbox._queue.qsize()

    def settled(self, count: int) -> int:
        """How many messages lie there, once it is so many and a little later."""
        deadline = time.monotonic() + 10
        while self.waiting() < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        return self.waiting()

    def close(self) -> None:
        for link in self.clients.values():
            link.last(word(9))
        for link in (*self.clients.values(), *self.server.values()):
            link.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    made = Crowd(6, room=2)
    yield made
    made.close()


def test_the_rule_is_one_that_both_ends_know() -> None:
    assert not crowded(range(CROWD))
    assert crowded(range(CROWD + 1))
    assert large(batch())
    assert not large(word(0))


def test_only_so_much_comes_unasked_and_the_rest_when_it_is_awaited(crowd: Crowd) -> None:
    for link in crowd.clients.values():
        link.send(batch())
    assert crowd.settled(2) == 2
    came = dict([crowd.inbox.get(), crowd.inbox.get()])
    for name in [name for name in crowd.names if name not in came]:
        peer, message = crowd.inbox.get(name)
        assert peer == name
        assert message is not None
        assert message.nbytes == BIG
    assert crowd.waiting() == 0


def test_room_is_free_again_once_nobody_holds_a_message(crowd: Crowd) -> None:
    for link in crowd.clients.values():
        link.send(batch())
    assert crowd.settled(2) == 2
    for _ in crowd.names[2:]:
        peer, message = crowd.inbox.get()
        del message
        crowd.clients[peer].send(batch(1))  # its asking makes the room look again
    assert crowd.settled(2) == 2


def test_small_messages_pass_by_themselves_and_nothing_overtakes_a_large_one() -> None:
    crowd = Crowd(1, room=0)
    (link,) = crowd.clients.values()
    for message in (word(0), batch(1), word(2), batch(3), word(4)):
        link.send(message)
    assert crowd.settled(1) == 1
    steps = [crowd.inbox.get("client-0")[1].stamp.step for _ in range(5)]  # type: ignore[union-attr]
    assert steps == [0, 1, 2, 3, 4]
    crowd.close()


def test_those_awaited_lately_are_let_in_at_once() -> None:
    room, entered = Room(0), []
    for peer in (f"p{i}" for i in range(FAVOURED + 2)):
        room.awaited(peer)
        room.asked(peer, ask(batch()), lambda peer=peer: entered.append(peer))
        room.came(peer, Message(Kind.SMASHED, "e", tensors={"h": torch.zeros(BIG, dtype=torch.uint8)}))
    assert len(entered) == FAVOURED + 2
    room.asked("p9", ask(batch()), lambda: entered.append("again"))
    room.asked("p0", ask(batch()), lambda: entered.append("long ago"))
    assert entered[-1] == "again"


def test_two_crowded_parties_that_send_to_each_other_do_not_wait_for_ever() -> None:
    ends = memory_pair()
    inboxes = [ChannelInbox(timeout=10, room=Room(0)) for _ in ends]
    links = [ChannelLink("other", end, inbox, crowded=True) for end, inbox in zip(ends, inboxes, strict=True)]
    came: queue.Queue[int] = queue.Queue()

    def take(inbox: ChannelInbox) -> None:
        for step in range(3):
            message = inbox.get("other")[1]
            assert message is not None
            assert message.stamp.step == step
            came.put(step)

    for link in links:
        for step in range(3):
            link.send(batch(step))
    threads = [threading.Thread(target=take, args=(inbox,)) for inbox in inboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert came.qsize() == 6
    closing = [threading.Thread(target=link.close) for link in links]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(10)


def test_a_goodbye_does_not_wait_behind_what_is_not_let_in() -> None:
    crowd = Crowd(1, room=0)
    (link,) = crowd.clients.values()
    link.send(batch())
    say_goodbye({"server": link}, PeerError("elsewhere", "went away"), "client-0")
    link.close()
    with pytest.raises(PeerError, match="peer 'elsewhere'"):
        crowd.inbox.get()
    crowd.close()


def test_a_link_that_ends_lets_its_sender_go(crowd: Crowd) -> None:
    link = crowd.clients["client-0"]
    for name in crowd.names:
        crowd.clients[name].send(batch())
    crowd.settled(2)
    for name in crowd.names:
        crowd.server[name].close()
    link.close()
    assert not link._sender.is_alive()


@pytest.mark.parametrize("size", [None, "1", UNASKED, -1])
def test_asking_for_nonsense_is_refused(size: object) -> None:
    facts = {} if size is None else {"bytes": size}
    with pytest.raises(PeerError, match="peer 'mallory': asked for room"):
        Room().asked("mallory", Message(Kind.CONTROL, "room-ask", facts=facts), lambda: None)  # type: ignore[arg-type]


def test_who_sends_much_unasked_or_asks_twice_is_refused() -> None:
    room = Room()
    with pytest.raises(PeerError, match=rf"sent {BIG} bytes where 0 were let in"):
        room.came("mallory", batch())
    room.asked("mallory", ask(batch()), lambda: None)
    with pytest.raises(PeerError, match="asked for room before what it had asked for came"):
        room.asked("mallory", ask(batch()), lambda: None)
    with pytest.raises(PeerError, match=rf"sent {2 * BIG} bytes where {BIG} were let in"):
        room.came("mallory", Message(Kind.SMASHED, "e", tensors={"h": torch.zeros(2 * BIG, dtype=torch.uint8)}))


def test_a_party_with_few_peers_is_not_asked() -> None:
    ends = memory_pair()
    inbox = ChannelInbox(timeout=10)
    link, other = ChannelLink("few", ends[0], inbox), ChannelLink("me", ends[1], ChannelInbox(timeout=10), crowded=True)
    other.send(batch())
    with pytest.raises(PeerError, match="where nobody is asked for room"):
        inbox.get()
    other.last(word(0))
    for each in (other, link):
        each.close()
