"""Records, without a socket: boundaries of sizes, of keys and of trust; what is refused leaves nothing behind."""

import copy
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from channels import records
from channels.errors import ChannelDead, ChannelError, IntegrityError, KeyExhausted, MessageTooLarge
from channels.primitives import CIPHERS, TAG
from channels.records import HEADER, Frame, Keys, Kind, Limits, Opener, Sealer, Warm, aligned, padme

KEY = bytes(range(32))
SMALL = Limits(record=1 << 14, max_message=1 << 20, max_meta=1 << 10)
HEAD = HEADER.size + TAG


def ends(limits: Limits = SMALL, *, pad: bool = False, cipher: str = "AESGCM") -> tuple[Sealer, Opener]:
    return Sealer(Keys(CIPHERS[cipher], KEY), limits, pad=pad), Opener(Keys(CIPHERS[cipher], KEY), limits)


def sealed(sealer: Sealer, meta: bytes, *payload: bytes, kind: Kind = Kind.DATA) -> bytes:
    return b"".join(map(bytes, sealer.seal(kind, meta, payload)))


def opened(
    opener: Opener, stream: bytes, memories: list[memoryview] | None = None, *, elsewhere: bool = False
) -> Frame:
    """Open one message, keeping the memory it was opened in; EOFError where the stream is too short.

    Each record is opened in place, or out of the stream's own memory where it came `elsewhere`.
    """
    conversation, at = opener.open(), 0
    try:
        memory = next(conversation)
        while True:
            if memories is not None and memory is not opener._header:
                memories.append(memory)
            if len(stream) - at < len(memory):
                raise EOFError
            came = memoryview(stream)[at : at + len(memory)]
            at += len(memory)
            if not elsewhere:
                memory[:] = came
            memory = conversation.send(came if elsewhere else None)
    except StopIteration as done:
        assert at == len(stream)
        frame: Frame = done.value[1]
        return frame
    finally:
        conversation.close()


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 16383, 16384, 16385, 32768, 50000])
def test_sizes(cipher: str, pad: bool, size: int) -> None:
    sealer, opener = ends(pad=pad, cipher=cipher)
    data = os.urandom(size)
    for elsewhere in (False, True):
        stream = sealed(sealer, b"meta", data[: size // 2], b"", data[size // 2 :])
        frame = opened(opener, stream, elsewhere=elsewhere)
        assert (frame.meta, frame.payload) == (b"meta", data)


@given(st.lists(st.binary(max_size=300), max_size=6), st.binary(max_size=100), st.booleans())
def test_any_message_in_any_pieces(parts: list[bytes], meta: bytes, pad: bool) -> None:
    sealer, opener = ends(Limits(record=128), pad=pad)
    frame = opened(opener, sealed(sealer, meta, *parts))
    assert (frame.meta, frame.payload) == (meta, b"".join(parts))


def test_the_overhead_of_a_large_message_is_below_a_hundredth_of_a_percent() -> None:
    sealer, _ = ends(Limits())
    size = 4 << 20
    assert len(sealed(sealer, b"", bytes(size))) - size == HEAD + 4 * TAG < size * 1e-4


def test_a_payload_of_any_shape_is_its_bytes() -> None:
    import numpy as np

    sealer, opener = ends()
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert opened(opener, b"".join(map(bytes, sealer.seal(Kind.DATA, b"", (grid,))))).payload == grid.tobytes()
    with pytest.raises(TypeError):
        sealer.seal(Kind.DATA, b"", (grid[:, ::2],))


@pytest.mark.parametrize("length", [1, 63, 64, 4097, 1 << 20])
def test_memory_is_aligned_and_writable(length: int) -> None:
    import numpy as np

    memory = aligned(length)
    assert (len(memory), memory.readonly) == (length, False)
    assert np.frombuffer(memory, np.uint8).ctypes.data % 64 == 0


def test_received_memory_serves_again_only_when_nobody_holds_any_of_it() -> None:
    import numpy as np

    warm = Warm()

    def address(view: memoryview) -> int:
        return int(np.frombuffer(view, np.uint8).ctypes.data)

    first = warm.take(5000)
    held, second = first[10:20], warm.take(5000)
    assert len({address(first), address(second)}) == 2
    where = address(first)
    del first, second
    assert address(warm.take(5000)) != where  # a slice still refers to it
    array = np.frombuffer(held, np.uint8)
    del held
    assert address(warm.take(5000)) != where  # an array still does
    del array
    assert where in {address(warm.take(5000)), address(warm.take(5000))}
    assert len(warm.take(3)) == 3


def test_no_more_received_memory_is_kept_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "KEEP_IN_ALL", 3 << 20)
    warm = Warm()
    for size in range(5):
        warm.take((1 << 20) + size)
    assert sorted(warm._kept) == list(warm._ages) == [(1 << 20) + size for size in (3, 4)]
    for size in range(1, 2 * records.KEEP):
        warm.take(size)
    assert len(warm._ages) == sum(map(len, warm._kept.values())) == records.KEEP
    assert warm._bytes == sum(warm._ages)
    warm.take(records.KEEP_BYTES + 1)
    assert records.KEEP_BYTES + 1 not in warm._kept


def test_received_memory_is_wiped_when_a_channel_ends_or_too_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have served again holds plaintext until then; what is still held is its receiver's own."""
    monkeypatch.setattr(records, "FREE", records.FREE + 1)  # one reference more: `buffers`, to look at them afterwards
    warm = Warm()
    held, let_go = warm.take(5000), warm.take(6000)
    buffers = [raw for kept in warm._kept.values() for raw, _ in kept]
    held[:], let_go[:] = b"p" * 5000, b"p" * 6000
    del let_go
    assert b"p" in bytes(buffers[1])
    warm.forget()
    assert bytes(held) == b"p" * 5000
    assert b"p" not in bytes(buffers[1])
    assert not warm._kept

    first = warm.take(7000)
    buffers = [raw for kept in warm._kept.values() for raw, _ in kept]
    first[:] = b"p" * 7000
    del first
    more = [warm.take(length) for length in range(1, records.KEEP + 1)]
    assert len(more) == len(warm._ages) == records.KEEP
    assert b"p" not in bytes(buffers[0])


@pytest.mark.parametrize("every", [2, 3, 4, 1 << 16])
@pytest.mark.parametrize("meta", [b"", b"meta"])
@pytest.mark.parametrize("payload", [b"", b"payload" * 50])
def test_a_message_sealed_at_once_is_the_one_sealed_in_pieces(
    monkeypatch: pytest.MonkeyPatch, every: int, meta: bytes, payload: bytes
) -> None:
    """The short way through the sealer makes the same bytes, across changes of the key, too."""
    monkeypatch.setattr(records, "REKEY_EVERY", every)
    at_once, in_pieces = ends()[0], ends()[0]
    for _ in range(5):
        parts = payload[:7], payload[7:]  # two buffers go the long way
        assert sealed(at_once, meta, payload) == sealed(in_pieces, meta, *parts)
    assert at_once.keys.records == in_pieces.keys.records


def test_padme_is_the_published_function() -> None:
    """Against the paper's algorithm 1, written out; at most 12 % more, and few distinct lengths remain."""
    from math import floor, log2

    def published(length: int) -> int:
        e = floor(log2(length))
        s = floor(log2(e)) + 1 if e else 0
        mask = 2 ** (e - s) - 1 if e >= s else 0
        return (length + mask) & ~mask

    lengths = range(2, 20000)
    assert [padme(n) for n in lengths] == [published(n) for n in lengths]
    assert max(padme(n) / n for n in lengths) <= 1.12
    assert len({padme(n) for n in lengths}) < 250
    assert [padme(n) for n in (0, 1)] == [0, 1]


def test_padded_messages_of_near_lengths_look_alike() -> None:
    lengths = set()
    for size in range(8000, 8100):
        sealer, _ = ends(pad=True)
        lengths.add(len(sealed(sealer, bytes(20), bytes(size))))
    assert len(lengths) <= 2


# -- keys ----------------------------------------------------------------------------------------------------------


def test_nonce_exhaustion_stops_both_directions_for_good() -> None:
    sealer, opener = ends()
    for keys in (sealer.keys, opener.keys):
        assert isinstance(keys, Keys)
        keys.records = keys._until = records.LIMIT
    with pytest.raises(KeyExhausted):
        sealed(sealer, b"one too many")
    with pytest.raises(KeyExhausted):
        opened(opener, bytes(HEAD))
    with pytest.raises(ChannelDead, match="exhausted"):
        sealed(sealer, b"again")


def test_the_key_changes_at_the_boundary_and_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "REKEY_EVERY", 3)
    sealer, opener = ends()
    seen, streams = [], []
    for number in range(8):  # two records a message: boundaries fall between header and meta, too
        streams.append(sealed(sealer, b"%d" % number))
        seen.append(sealer.keys._key)  # type: ignore[attr-defined]
    assert sealer.keys.rekeys == 5
    assert len(set(seen)) == 6
    assert [opened(opener, stream).meta for stream in streams] == [b"%d" % number for number in range(8)]
    assert opener.keys.rekeys == 5


def test_without_the_rekey_the_record_after_the_boundary_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer, opener = ends()
    opener.keys._until = 1 << 40  # type: ignore[attr-defined]
    monkeypatch.setattr(records, "REKEY_EVERY", 3)
    sealer.keys._until = 3  # type: ignore[attr-defined]
    for _ in range(3):
        opened(opener, sealed(sealer, b""))
    with pytest.raises(IntegrityError):
        opened(opener, sealed(sealer, b""))


def test_an_old_key_cannot_be_had_from_a_new_one() -> None:
    """The step is HMAC under the old key: known answer, so that another implementation can follow."""
    import hmac

    keys = Keys(CIPHERS["AESGCM"], KEY)
    keys._turn(3)
    assert keys._key == hmac.new(KEY, b"secsplit rekey" + (1).to_bytes(8, "big"), "sha256").digest()


def test_no_nonce_is_handed_out_twice() -> None:
    used = []

    class Watching:
        def encrypt_into(self, nonce: bytes, data: bytes, ad: None, out: memoryview) -> int:
            used.append(bytes(nonce))
            return len(out)

    sealer, _ = ends()
    sealer.keys._aead = Watching()  # type: ignore[attr-defined]
    for size in (0, 5, 20000, 40000):
        sealed(sealer, b"m", bytes(size))
    assert len(set(used)) == len(used) == 4 + 4 + 1 + 2 + 3


def test_a_forked_child_cannot_use_its_parents_keys() -> None:
    sealer, opener = ends()
    stream = sealed(sealer, b"before")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for act in (lambda: sealed(sealer, b"twice the same nonce"), lambda: opened(opener, stream)):
            try:
                act()
                said.append("used")
            except ChannelDead as error:
                said.append(str(error))
        os.write(writing, "|".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    said_there = os.read(reading, 4096).decode()
    os.close(reading)
    os.close(writing)
    assert said_there.count("forked") == 2
    assert opened(opener, stream).meta == b"before"  # the parent is not disturbed


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_nothing_is_left_in_memory_after_a_record_that_did_not_open(cipher: str, pad: bool, elsewhere: bool) -> None:
    """`decrypt_into` leaves plaintext behind when it refuses: meta, the first record, and the last, each changed."""
    secret = b"patient " * 5000
    for position in (HEAD + 3, HEAD + 200, HEAD + 16500, -1):
        sealer, opener = ends(pad=pad, cipher=cipher)
        stream = bytearray(sealed(sealer, b"meta" * 10, secret))
        stream[position] ^= 1
        memories: list[memoryview] = []
        with pytest.raises(IntegrityError):
            opened(opener, bytes(stream), memories, elsewhere=elsewhere)
        assert memories
        assert all(not any(memory) for memory in memories)
        with pytest.raises(ChannelDead):
            opened(opener, bytes(stream))


def test_the_library_does_leave_plaintext_behind() -> None:
    """The reason for wiping. When this fails the library has changed for the better."""
    aead = CIPHERS["AESGCM"].new(KEY)
    buffer = bytearray(aead.encrypt(bytes(12), b"secret" * 100, None))
    buffer[-1] ^= 1
    with pytest.raises(InvalidTag):
        aead.decrypt_into(bytes(12), buffer, None, memoryview(buffer)[:-TAG])
    assert b"secret" in buffer


def test_giving_up_half_way_wipes_too() -> None:
    sealer, opener = ends()
    stream = sealed(sealer, b"", b"patient " * 5000)
    memories: list[memoryview] = []
    with pytest.raises(EOFError):
        opened(opener, stream[:-1], memories)
    assert all(not any(memory) for memory in memories)
    with pytest.raises(ChannelDead):
        opened(opener, stream)


def test_giving_up_before_the_header_changes_nothing() -> None:
    sealer, opener = ends()
    stream = sealed(sealer, b"still whole")
    with pytest.raises(EOFError):
        opened(opener, b"")
    assert opened(opener, stream).meta == b"still whole"


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (HEADER.pack(1 << 63, 0, 0, 0), MessageTooLarge),
        (HEADER.pack((1 << 20) + 1, 0, 0, 0), MessageTooLarge),
        (HEADER.pack(0, 0xFFFFFFFF, 0, 0), MessageTooLarge),
        (HEADER.pack(0, 0, 9, 0), IntegrityError),
        (HEADER.pack(0, 0, 0, 2), IntegrityError),
    ],
)
def test_an_authentic_but_absurd_header_allocates_nothing(
    header: bytes, error: type[ChannelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may be enrolled and yet hostile."""
    keys, (_, opener) = Keys(CIPHERS["AESGCM"], KEY), ends()
    wire = bytearray(HEAD)
    keys.seal(header, memoryview(wire))
    monkeypatch.setattr(records.Warm, "take", refuse_to_allocate)
    with pytest.raises(error):
        opened(opener, bytes(wire))


def refuse_to_allocate(_: object, length: int) -> memoryview:
    raise AssertionError(f"{length} bytes asked for")


def test_our_own_large_message_is_refused_before_a_nonce_is_used() -> None:
    sealer, opener = ends()
    for meta, payload in ((bytes(1 << 11), b""), (b"", bytes((1 << 20) + 1))):
        with pytest.raises(MessageTooLarge, match="at most"):
            sealer.seal(Kind.DATA, meta, (payload,))
    assert sealer.keys.records == 0
    assert opened(opener, sealed(sealer, b"fine")).meta == b"fine"


@pytest.mark.parametrize("fault", ["swap", "drop", "repeat", "reflect"])
def test_whole_records_out_of_place_do_not_open(fault: str) -> None:
    sealer, opener = ends()
    streams = [sealed(sealer, b"", bytes(20)) for _ in range(3)]
    order: Sequence[bytes] = {
        "swap": [streams[1], streams[0]],
        "drop": [streams[1]],
        "repeat": [streams[0], streams[0]],
        "reflect": [sealed(Sealer(Keys(CIPHERS["AESGCM"], bytes(32)), SMALL), b"", bytes(20))],
    }[fault]
    for stream in order[:-1]:
        if fault == "repeat":
            opened(opener, stream)
    with pytest.raises(IntegrityError):
        opened(opener, order[0])


def test_no_key_in_repr_pickle_or_traceback() -> None:
    sealer, opener = ends()
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            act(sealer.keys)
    assert repr(sealer.keys) == "<Keys>"
    shown = crash(lambda: opened(opener, bytes(HEAD))) + crash(lambda: opened(opener, bytes(HEAD)))
    assert "did not open" in shown
    for form in (KEY.hex(), repr(KEY)[2:-1]):
        assert form not in shown


def crash(act: Callable[[], object]) -> str:
    try:
        act()
    except ChannelError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("no error")


@pytest.mark.parametrize("size", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 20, (4 << 20) - 1, 4 << 20])
@pytest.mark.parametrize("pad", [False, True])
def test_short_messages_are_cut_finer_and_as_foretold(size: int, pad: bool) -> None:
    """Below four records a message travels in pieces of 256 KiB, each sent while the next is sealed."""
    sealer, opener = ends(Limits(), pad=pad)
    pieces = [bytes(piece) for piece in sealer.seal(Kind.DATA, b"", (bytes(size),))]
    stream, total = b"".join(pieces), padme(size) if pad else size
    assert len(stream) == records.sealed_bytes(0, total)
    assert opener.keys.records == 0
    assert len(opened(opener, stream).payload) == size
    each = 1 << 18 if total < 4 << 20 else 1 << 20
    assert opener.keys.records == 1 + -(-total // each)
    assert max(map(len, pieces)) <= records.SMALL + each + TAG


def test_many_channels_seal_in_the_memory_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first channels keep a scratch each; all others borrow one for as long as a message takes."""
    monkeypatch.setattr(records, "_few", threading.Semaphore(2))
    many = [ends(Limits()) for _ in range(12)]
    data = os.urandom(3 << 18)
    for sealer, opener in many:
        assert opened(opener, sealed(sealer, b"meta", data)).payload == data
    assert sorted(len(sealer._scratch) > records.SMALL for sealer, _ in many) == [False] * 10 + [True] * 2
    del many[0], sealer, opener  # one of the two that kept theirs: its place is free
    assert records._few.acquire(blocking=False)
    assert not records._few.acquire(blocking=False)


def test_two_channels_that_borrow_at_once_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_few", threading.Semaphore(0))
    (one, first), (other, second) = ends(Limits()), ends(Limits())
    data = [os.urandom(3 << 18) for _ in range(2)]
    woven: list[list[bytes]] = [[], []]
    pieces = [iter(s.seal(Kind.DATA, b"", (d,))) for s, d in zip((one, other), data, strict=True)]
    while piece := [next(p, None) for p in pieces]:
        if piece == [None, None]:
            break
        for kept, view in zip(woven, piece, strict=True):
            kept.append(bytes(view or b""))
    for opener, kept, sent in zip((first, second), woven, data, strict=True):
        assert opened(opener, b"".join(kept)).payload == sent
