"""Two peers and an adversary network, played at random: what is delivered is a prefix of what was sent, exactly once.

The adversary holds every byte in flight, both ways: it delivers some, drops, changes, repeats, moves, reflects and
splices. Whatever it does, each side receives the other's messages in order, each once, unchanged, until something is
wrong; then nothing more, ever.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels.errors import ChannelDead, ChannelError
from channels.primitives import CIPHERS
from channels.records import Frame, Keys, Kind, Limits, Opener, Sealer

LIMITS = Limits(record=64, max_message=4096, max_meta=256)
AES = CIPHERS["AESGCM"]


class End:
    """One peer's receiving half, fed any bytes at any time."""

    def __init__(self, key: bytes) -> None:
        self.opener = Opener(Keys(AES, key), LIMITS)
        self.waiting, self.got, self.dead = bytearray(), list[tuple[bytes, bytes]](), False
        self._begin()

    def _begin(self) -> None:
        self.conversation = self.opener.open()
        self.memory = next(self.conversation)

    def feed(self, data: bytes) -> None:
        self.waiting += data
        while not self.dead and len(self.waiting) >= len(self.memory):
            count = len(self.memory)
            came, self.waiting = memoryview(self.waiting[:count]), self.waiting[count:]
            if len(self.waiting) % 2:  # in place, or out of what was read ahead
                self.memory[:] = came
            try:
                self.memory = self.conversation.send(None if len(self.waiting) % 2 else came)
            except StopIteration as done:
                frame: Frame = done.value[1]
                self.got.append((frame.meta, bytes(frame.payload)))
                self._begin()
            except ChannelError:
                self.dead = True


class Network(RuleBasedStateMachine):
    """Direction 0 is there, 1 is back."""

    def __init__(self) -> None:
        super().__init__()
        keys = bytes(32), b"\1" * 32
        self.sealers = [Sealer(Keys(AES, key), LIMITS) for key in keys]
        self.ends = [End(key) for key in keys]
        self.sent: list[list[tuple[bytes, bytes]]] = [[], []]
        self.flight = [bytearray(), bytearray()]
        self.heard = [bytearray(), bytearray()]  # all a wiretap has ever seen
        self.honest = [True, True]

    @rule(way=st.integers(0, 1), meta=st.binary(max_size=40), payload=st.binary(max_size=200))
    def send(self, way: int, meta: bytes, payload: bytes) -> None:
        for piece in self.sealers[way].seal(Kind.DATA, meta, (payload,)):
            self.flight[way] += piece
            self.heard[way] += piece
        self.sent[way].append((meta, payload))

    @rule(way=st.integers(0, 1), count=st.integers(1, 400))
    def deliver(self, way: int, count: int) -> None:
        self.ends[way].feed(bytes(self.flight[way][:count]))
        del self.flight[way][:count]

    @precondition(lambda self: any(self.flight))
    @rule(way=st.integers(0, 1), at=st.integers(0, 1 << 16), bit=st.integers(0, 7))
    def flip(self, way: int, at: int, bit: int) -> None:
        if self.flight[way]:
            self.flight[way][at % len(self.flight[way])] ^= 1 << bit
            self.honest[way] = False

    @rule(way=st.integers(0, 1), at=st.integers(0, 1 << 16), count=st.integers(1, 100))
    def drop(self, way: int, at: int, count: int) -> None:
        if self.flight[way]:
            start = at % len(self.flight[way])
            del self.flight[way][start : start + count]
            self.honest[way] = False

    @rule(way=st.integers(0, 1), source=st.integers(0, 1), start=st.integers(0, 1 << 16), count=st.integers(1, 200))
    def inject(self, way: int, source: int, start: int, count: int) -> None:
        """Replay, duplicate, reflect or splice: anything ever seen, either way, put before what is in flight."""
        if self.heard[source]:
            start %= len(self.heard[source])
            self.flight[way][:0] = self.heard[source][start : start + count]
            self.honest[way] = False

    @invariant()
    def what_arrived_is_a_prefix_of_what_was_sent(self) -> None:
        for way in (0, 1):
            got = self.ends[way].got
            assert got == self.sent[way][: len(got)]
            assert not (self.ends[way].dead and self.honest[way])

    def teardown(self) -> None:
        for way in (0, 1):
            self.deliver(way, len(self.flight[way]))
            if self.honest[way]:
                assert self.ends[way].got == self.sent[way]
            if self.ends[way].dead:
                self.must_be_dead(self.ends[way])
        self.what_arrived_is_a_prefix_of_what_was_sent()

    def must_be_dead(self, end: End) -> None:
        conversation = end.opener.open()
        next(conversation)
        try:
            conversation.send(None)
        except ChannelDead:
            return
        raise AssertionError("a channel lives on after a failure")


Network.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_two_peers_and_an_adversary = Network.TestCase
