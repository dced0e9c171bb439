"""More than a hundred thousand mutants of recorded streams and handshakes: none accepted, nothing released.

Each mutant of a stream is given to a fresh receiver that holds the right keys. What it delivers must be messages that
were sent, from the first on, and fewer than all of them unless the mutant still holds all; it must end in an error, be
dead afterwards, and leave only zeros in the memory of the message that failed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from channels.errors import ChannelDead, ChannelError, DigestMismatch, IntegrityError
from channels.handshake import PREFACE, NoiseIK
from channels.meeting import Agreement, Conversation
from channels.pairs import fresh_sides
from channels.primitives import CIPHERS
from channels.records import Frame, Keys, Kind, Limits, Opener, Sealer

LIMITS = Limits(record=128, max_message=1 << 16, max_meta=1 << 10)
MESSAGES = [(b"", b""), (b"a", b""), (b"", b"x" * 40), (b"meta", b"patient" * 43), (b"m" * 30, b"y" * 128), (b"", b"z")]
Stream = list[bytes]  # sealed messages


@dataclass
class Outcome:
    """What a receiver made of a stream."""

    delivered: list[Frame]
    error: Exception | None
    left: list[memoryview]  # memory of the message that failed
    opener: Opener


def record(key: bytes, cipher: str, messages: list[tuple[bytes, bytes]] = MESSAGES) -> Stream:
    sealer = Sealer(Keys(CIPHERS[cipher], key), LIMITS)
    return [b"".join(map(bytes, sealer.seal(Kind.DATA, meta, (payload,)))) for meta, payload in messages]


def receive(key: bytes, cipher: str, stream: bytes) -> Outcome:
    """Open messages until the stream ends (error None: it ended between two messages) or an error."""
    opener = Opener(Keys(CIPHERS[cipher], key), LIMITS)
    outcome, at = Outcome([], None, [], opener), 0
    while at < len(stream):
        conversation, outcome.left = opener.open(), []
        try:
            memory = next(conversation)
            while True:
                if len(stream) - at < len(memory):
                    conversation.close()
                    outcome.error = EOFError()
                    return outcome
                if memory is not opener._header:
                    outcome.left.append(memory)
                memory[:] = stream[at : at + len(memory)]
                at += len(memory)
                memory = conversation.send(None)
        except StopIteration as done:
            outcome.delivered.append(done.value[1])
        except ChannelError as error:
            outcome.error = error
            return outcome
    return outcome


def judge(key: bytes, cipher: str, mutant: bytes, intact: int) -> None:
    """A mutant whose first `intact` messages are untouched delivers those at most, then fails and wipes."""
    outcome = receive(key, cipher, mutant)
    assert len(outcome.delivered) <= intact
    for frame, (meta, payload) in zip(outcome.delivered, MESSAGES, strict=False):
        assert (frame.meta, frame.payload) == (meta, payload)
    if outcome.error is not None:
        assert all(not any(memory) for memory in outcome.left)
    if isinstance(outcome.error, ChannelError):
        assert isinstance(outcome.error, IntegrityError)
        with pytest.raises(ChannelDead):
            next_message(outcome.opener)


def next_message(opener: Opener) -> None:
    conversation = opener.open()
    next(conversation)
    conversation.send(None)


def bit_flips(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Every bit of every byte."""
    whole = b"".join(stream)
    starts = boundaries(stream)
    for position in range(len(whole)):
        intact = sum(start <= position for start in starts) - 1
        for bit in range(8):
            mutant = bytearray(whole)
            mutant[position] ^= 1 << bit
            yield bytes(mutant), intact


def boundaries(stream: Stream) -> list[int]:
    starts = [0]
    for sealed in stream[:-1]:
        starts.append(starts[-1] + len(sealed))
    return starts


def substitutions(stream: Stream, coins: random.Random, count: int) -> Iterator[tuple[bytes, int]]:
    """Random runs of bytes replaced, inserted or removed."""
    whole = b"".join(stream)
    starts = boundaries(stream)
    for _ in range(count):
        position, length = coins.randrange(len(whole)), coins.randrange(1, 40)
        removed = coins.choice([0, length])
        added = coins.randbytes(length if not removed else coins.choice([0, length]))
        mutant = whole[:position] + added + whole[position + removed :]
        if mutant != whole:
            first = next((i for i, (a, b) in enumerate(zip(mutant, whole, strict=False)) if a != b), len(mutant))
            yield mutant, sum(start <= first for start in starts) - 1


def truncations(stream: Stream) -> Iterator[tuple[bytes, int]]:
    """Cut at every byte: whole messages before the cut arrive, and nothing of the one that was cut."""
    whole = b"".join(stream)
    starts = [*boundaries(stream), len(whole)]
    for end in range(len(whole)):
        yield whole[:end], sum(start <= end for start in starts) - 1


def rearrangements(stream: Stream, others: list[Stream]) -> Iterator[tuple[bytes, int]]:
    """Messages swapped, dropped, repeated; those of other connections or of the other direction spliced in."""
    count = len(stream)
    for i in range(count):
        yield b"".join(stream[:i] + stream[i + 1 :]), i if i < count - 1 else count
        yield b"".join(stream[: i + 1] + stream[i:]), i + 1
        yield b"".join(stream + stream[i:]), count
        for j in range(i + 1, count):
            swapped = list(stream)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            yield b"".join(swapped), i
    for other in others:
        for i in range(count):
            for j in range(len(other)):
                yield b"".join([*stream[:i], other[j], *stream[i:]]), i
                yield b"".join([*stream[:i], *other[j:]]), i


@pytest.mark.parametrize("cipher", CIPHERS)
def test_no_mutant_of_a_stream_is_accepted(cipher: str) -> None:
    key, coins = bytes(range(32)), random.Random(20261122)
    stream = record(key, cipher)
    others = [record(bytes([n]) * 32, cipher) for n in range(60)]  # other connections, and this one's other direction
    outcome = receive(key, cipher, b"".join(stream))
    assert [(f.meta, bytes(f.payload)) for f in outcome.delivered] == MESSAGES
    judged = 0
    for mutant, intact in (
        *bit_flips(stream),
        *truncations(stream),
        *substitutions(stream, coins, 40_000),
        *rearrangements(stream, others),
    ):
        judge(key, cipher, mutant, intact)
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
