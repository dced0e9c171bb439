"""More than a hundred thousand mutants of recorded streams and handshakes: none accepted, nothing released.

A mutant of a stream is untouched up to the start of some message. A receiver with the right keys, standing at that
point, must deliver nothing of what follows: it ends in an error or in a stream cut short, leaves only zeros in the
memory of the message that failed, and is dead afterwards.
"""

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from channels.errors import ChannelDead, ChannelError, DigestMismatch, IntegrityError
from channels.handshake import PREFACE, NoiseIK
from channels.meeting import Agreement, Conversation
from channels.pairs import fresh_sides
from channels.primitives import CIPHERS
from channels.records import Keys, Kind, Limits, Opener, Sealer

LIMITS = Limits(record=128, max_message=1 << 16, max_meta=1 << 10)
MESSAGES = [(b"", b""), (b"a", b""), (b"", b"x" * 40), (b"meta", b"patient" * 43), (b"m" * 30, b"y" * 128), (b"", b"z")]
KEY = bytes(range(32))


@dataclass
class Stream:
    """Sealed messages, and where each begins in bytes and in records (the end included)."""

    messages: list[bytes]
    starts: list[int]
    records: list[int]

    @property
    def whole(self) -> bytes:
        return b"".join(self.messages)

    def intact(self, position: int) -> int:
        """How many messages lie wholly before a byte."""
        return bisect.bisect_right(self.starts, position) - 1


def record(key: bytes, cipher: str) -> Stream:
    sealer, stream = Sealer(Keys(CIPHERS[cipher], key), LIMITS), Stream([], [0], [0])
    for meta, payload in MESSAGES:
        stream.messages.append(b"".join(map(bytes, sealer.seal(Kind.DATA, meta, (payload,)))))
        stream.starts.append(stream.starts[-1] + len(stream.messages[-1]))
        stream.records.append(sealer.keys.records)
    return stream


@dataclass
class Outcome:
    """What a receiver made of a stream."""

    delivered: list[tuple[bytes, bytes]]
    error: ChannelError | EOFError | None
    left: list[memoryview]  # memory of the message that failed
    opener: Opener


def receive(keys: Keys, stream: bytes) -> Outcome:
    """Open messages until the stream ends (error None: it ended between two messages) or an error.

    Records are opened in place and out of a read-ahead by turns, as they are on a socket.
    """
    opener, at, in_place = Opener(keys, LIMITS), 0, len(stream) % 2 == 0
    outcome = Outcome([], None, [], opener)
    while at < len(stream) and outcome.error is None:
        conversation, outcome.left = opener.open(), []
        try:
            memory = next(conversation)
            while True:
                if len(stream) - at < len(memory):
                    outcome.error = EOFError()
                    conversation.close()
                    break
                if memory is not opener._header:
                    outcome.left.append(memory)
                came = memoryview(stream)[at : at + len(memory)]
                at += len(memory)
                if in_place := not in_place:
                    memory[:] = came
                memory = conversation.send(None if in_place else came)
        except StopIteration as done:
            outcome.delivered.append((done.value[1].meta, bytes(done.value[1].payload)))
        except ChannelError as error:
            outcome.error = error
    return outcome


def judge(stream: Stream, cipher: str, mutant: bytes, intact: int) -> None:
    """Nothing after the intact messages is accepted, nothing is left in memory, and the receiver is dead."""
    start = stream.starts[intact]
    assert mutant[:start] == stream.whole[:start]
    keys = Keys(CIPHERS[cipher], KEY)
    keys.records = stream.records[intact]
    outcome = receive(keys, mutant[start:])
    assert outcome.delivered == []
    assert not any(any(memory) for memory in outcome.left)
    if outcome.error is None:
        assert mutant == stream.whole[:start]  # cut between two messages: the missing goodbye tells (test_channel)
    elif isinstance(outcome.error, ChannelError):
        assert isinstance(outcome.error, IntegrityError)
        assert dead(outcome.opener)


def dead(opener: Opener) -> bool:
    conversation = opener.open()
    next(conversation)
    try:
        conversation.send(None)
    except ChannelDead:
        return True
    return False


def bit_flips(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Every bit of every byte."""
    for position in range(len(stream.whole)):
        for bit in range(8):
            mutant = bytearray(stream.whole)
            mutant[position] ^= 1 << bit
            yield bytes(mutant), stream.intact(position)


def substitutions(stream: Stream, coins: random.Random, count: int) -> Iterator[tuple[bytes, int]]:
    """Random runs of bytes replaced, inserted or removed."""
    whole = stream.whole
    for _ in range(count):
        position, length = coins.randrange(len(whole)), coins.randrange(1, 40)
        removed, added = coins.choice([(length, length), (length, 0), (0, length)])
        mutant = whole[:position] + coins.randbytes(added) + whole[position + removed :]
        if mutant != whole:
            shared = next((i for i in range(position, len(whole)) if mutant[i : i + 1] != whole[i : i + 1]), len(whole))
            yield mutant, stream.intact(shared) if shared < len(whole) else len(stream.messages)


def truncations(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Cut at every byte."""
    for end in range(len(stream.whole)):
        yield stream.whole[:end], stream.intact(end)


def rearrangements(stream: Stream, others: list[Stream]) -> Iterator[tuple[bytes, int]]:
    """Messages swapped, dropped, repeated; those of other connections or of the other direction spliced in."""
    messages, count = stream.messages, len(stream.messages)
    for i in range(count):
        yield b"".join(messages[:i] + messages[i + 1 :]), i
        yield b"".join(messages[: i + 1] + messages[i:]), i + 1
        yield b"".join(messages + messages[i:]), count
        for j in range(i + 1, count):
            swapped = list(messages)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            yield b"".join(swapped), i
    for other in others:
        for i in range(count + 1):
            for j in range(count):
                yield b"".join([*messages[:i], other.messages[j], *messages[i:]]), i
                yield b"".join([*messages[:i], *other.messages[j:]]), i


@pytest.mark.parametrize("cipher", CIPHERS)
def test_no_mutant_of_a_stream_is_accepted(cipher: str) -> None:
    stream, coins = record(KEY, cipher), random.Random(20261122)
    others = [record(bytes([n]) * 32, cipher) for n in range(60)]  # other connections, and this one's other direction
    assert receive(Keys(CIPHERS[cipher], KEY), stream.whole).delivered == MESSAGES
    judged = 0
    for mutant, intact in (
        *bit_flips(stream),
        *truncations(stream),
        *substitutions(stream, coins, 40_000),
        *rearrangements(stream, others),
    ):
        judge(stream, cipher, mutant, intact)
        judged += 1
    assert judged > 50_000, judged


# -- handshakes ----------------------------------------------------------------------------------------------------

NEAR, FAR = fresh_sides()
IK = NoiseIK()


def run(conversation: Conversation, heard: bytes) -> tuple[bytes, Agreement | None]:
    """Give a conversation these bytes; what it said, and what it agreed to. EOFError where they do not suffice."""
    said, at = b"", 0
    try:
        ask = next(conversation)
        while True:
            said += ask.say
            if len(heard) - at < ask.want:
                raise EOFError(said)
            at += ask.want
            ask = conversation.send(heard[at - ask.want : at])
    except StopIteration as done:
        return said, done.value
    finally:
        conversation.close()


def first_message() -> tuple[Conversation, bytes]:
    conversation = IK.initiate(NEAR, FAR.me.public)
    return conversation, next(conversation).say


def test_no_mutant_of_the_first_message_is_answered() -> None:
    """Each bit of each byte, cuts and splices: the responder says nothing at all."""
    _, message = first_message()
    _, other = first_message()
    mutants = [message[:i] + bytes([message[i] ^ 1 << i % 8]) + message[i + 1 :] for i in range(len(message))]
    mutants += [message[:i] + other[i:] for i in range(2 + PREFACE.size + 1, len(message) - 1, 7)]
    for mutant in mutants:
        with pytest.raises((ChannelError, EOFError)) as caught:
            run(IK.respond(FAR), mutant)
        assert not isinstance(caught.value, DigestMismatch)
        assert caught.value.args[0] == b"" or isinstance(caught.value, ChannelError)
    assert len(mutants) > 1600


def test_no_mutant_of_the_answer_is_believed() -> None:
    for position in range(0, 1290, 3):
        conversation, message = first_message()
        responder = IK.respond(FAR)
        next(responder)
        responder.send(message[:2])
        answer = bytearray(responder.send(message[2:]).say)
        answer[position % len(answer)] ^= 1 << position % 8
        with pytest.raises((ChannelError, EOFError)):
            resume(conversation, bytes(answer))


def resume(conversation: Conversation, heard: bytes) -> None:
    """Go on with a conversation whose first message has been taken."""
    head, rest = heard[:2], heard[2:]
    ask = conversation.send(head)
    if ask.want > len(rest):
        raise EOFError
    conversation.send(rest[: ask.want])


def test_a_replayed_first_message_yields_no_channel() -> None:
    """Recorded and played again, with the recorded hello too: answered, but never live."""
    conversation, message = first_message()
    responder = IK.respond(FAR)
    next(responder)
    responder.send(message[:2])
    answer = responder.send(message[2:]).say
    ask = conversation.send(answer[:2])
    hello = conversation.send(answer[2 : 2 + ask.want]).say
    with pytest.raises(StopIteration) as live:
        responder.send(hello)
    assert isinstance(live.value.value, Agreement)
    with pytest.raises(ChannelError):
        run(IK.respond(FAR), message + hello)


def test_a_reflected_message_is_refused_by_its_sender() -> None:
    conversation, message = first_message()
    with pytest.raises((ChannelError, EOFError)):
        resume(conversation, message)
    with pytest.raises(ChannelError):
        run(IK.respond(NEAR), message)
