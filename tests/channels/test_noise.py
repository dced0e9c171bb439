"""Noise against others: cacophony's and snow's vectors, the one published hybrid handshake, a live independent peer."""

import copy
import gzip
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from noise.connection import Keypair, NoiseConnection

from channels.errors import HandshakeError, IntegrityError, KeyExhausted
from channels.noise import LAST_NONCE, CipherState, HandshakeState, Protocol, SymmetricState, Transport
from channels.patterns import PATTERNS, parse
from channels.primitives import CIPHERS, HASHES, MLKEM768PrivateKey, X25519PrivateKey

VECTORS = Path(__file__).parents[1] / "vectors" / "noise"
LIVE = ["N", "K", "X", "NN", "KN", "NK", "KK", "NX", "KX", "XN", "IN", "XK", "IK", "XX", "IX", "NNpsk0", "XXpsk3"]
LIVE += ["IKpsk2", "KKpsk0"]


def load(name: str) -> list[dict[str, Any]]:
    raw = (VECTORS / name).read_bytes()
    vectors: list[dict[str, Any]] = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)["vectors"]
    return vectors


def key(raw: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(raw))


def side(vector: dict[str, Any], role: str) -> HandshakeState:
    def maybe(name: str) -> X25519PrivateKey | None:
        raw = vector.get(f"{role}_{name}")
        return key(raw) if raw else None

    remote = vector.get(f"{role}_remote_static")
    return HandshakeState(
        Protocol.of(vector["protocol_name"]),
        initiator=role == "init",
        prologue=bytes.fromhex(vector[f"{role}_prologue"]),
        static=maybe("static"),
        remote_static=bytes.fromhex(remote) if remote else None,
        psks=tuple(map(bytes.fromhex, vector.get(f"{role}_psks", []))),
        ephemeral_for_testing_only=maybe("ephemeral"),
    )


@pytest.mark.parametrize(("name", "count"), [("cacophony-25519.json.gz", 472), ("snow.json.gz", 408)])
def test_every_published_handshake_and_transport_message(name: str, count: int) -> None:
    vectors = load(name)
    for vector in vectors:
        initiator, responder = side(vector, "init"), side(vector, "resp")
        writer, reader = initiator, responder
        transports: tuple[Transport, Transport] | None = None
        for index, message in enumerate(vector["messages"]):
            payload, expected = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
            if not initiator.finished:
                assert writer.write_message(payload) == expected, vector["protocol_name"]
                assert reader.read_message(expected) == payload
                writer, reader = reader, writer
                continue
            if transports is None:
                if "handshake_hash" in vector:
                    assert initiator.handshake_hash.hex() == vector["handshake_hash"]
                transports = initiator.into_transport(), responder.into_transport()
            first = initiator.pattern.one_way or index % 2 == 0
            sender, receiver = transports if first else transports[::-1]
            assert sender.send.encrypt_with_ad(b"", payload) == expected, vector["protocol_name"]
            assert receiver.receive.decrypt_with_ad(b"", expected) == payload
    assert len(vectors) == count


def hybrid(vector: dict[str, Any], role: str) -> HandshakeState:
    seed = bytes.fromhex(vector["init_mlkem768_seed"])
    return HandshakeState(
        Protocol.of(vector["protocol_name"]),
        initiator=role == "init",
        static=key(vector[f"{role}_static"]),
        ephemeral_for_testing_only=key(vector[f"{role}_ephemeral"]),
        kem_for_testing_only=MLKEM768PrivateKey.from_seed_bytes(seed) if role == "init" else None,
    )


def test_the_published_hybrid_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roles. The responder's encapsulation is random, so its published outcome stands in; all else is computed."""
    (vector,) = load("xxhfs-mlkem768.json")
    opened = []
    decrypt = SymmetricState.decrypt_and_hash
    monkeypatch.setattr(SymmetricState, "decrypt_and_hash", lambda s, c: opened.append(decrypt(s, c)) or opened[-1])
    initiator, responder = hybrid(vector, "init"), hybrid(vector, "resp")
    message_b, message_c = bytes.fromhex(vector["msg_b"]), bytes.fromhex(vector["msg_c"])
    message_a = initiator.write_message()
    initiator.read_message(message_b)
    assert initiator.write_message() == message_c

    (ciphertext,) = [plaintext for plaintext in opened if len(plaintext) == 1088]
    secret = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["init_mlkem768_seed"])).decapsulate(ciphertext)
    responder.read_message(message_a)
    monkeypatch.setattr("channels.noise.encapsulate", lambda public: (secret, ciphertext))
    assert responder.write_message() == message_b
    responder.read_message(message_c)

    assert [len(message) for message in (message_a, message_b, message_c)] == vector["msg_bytes"]
    for finished, first in ((initiator, True), (responder, False)):
        assert finished.handshake_hash.hex() == vector["handshake_hash"]
        transport = finished.into_transport()
        keys = [cipher._key.hex() for cipher in (transport.send, transport.receive)]
        assert keys == [vector["k1"], vector["k2"]][:: 1 if first else -1]


def live(name: str, initiator: bool, prologue: bytes) -> tuple[HandshakeState, NoiseConnection]:
    """Our side and, in the other role, the independent library's, with keys as the pattern asks."""
    protocol = Protocol.of(name)
    pattern = protocol.pattern
    ours, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    us_known, them_known = pattern.initiator_known, pattern.responder_known
    if not initiator:
        us_known, them_known = them_known, us_known
    psks = tuple(bytes([n]) * 32 for n in range(pattern.psks))
    mine = HandshakeState(
        protocol,
        initiator=initiator,
        prologue=prologue,
        static=ours,
        remote_static=theirs.public_key().public_bytes_raw() if them_known else None,
        psks=psks,
    )
    other = NoiseConnection.from_name(name.encode())
    (other.set_as_responder if initiator else other.set_as_initiator)()
    other.set_prologue(prologue)
    sends_static = any("s" in turn for turn in pattern.messages[1 if initiator else 0 :: 2])
    if them_known or sends_static:
        other.set_keypair_from_private_bytes(Keypair.STATIC, theirs.private_bytes_raw())
    if us_known:
        other.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, ours.public_key().public_bytes_raw())
    if psks:
        other.set_psks(psks=list(psks))
    other.start_handshake()
    return mine, other


@pytest.mark.parametrize("pattern", LIVE)
def test_live_handshakes_with_an_independent_implementation(pattern: str) -> None:
    for cipher, hash_, initiator in itertools.product(CIPHERS, HASHES, (True, False)):
        mine, other = live(f"Noise_{pattern}_25519_{cipher}_{hash_}", initiator, b"prologue")
        our_turn = initiator
        while not mine.finished:
            if our_turn:
                assert bytes(other.read_message(mine.write_message(b"from us"))) == b"from us"
            else:
                assert mine.read_message(bytes(other.write_message(b"from them"))) == b"from them"
            our_turn = not our_turn
        assert other.handshake_finished
        assert mine.handshake_hash == other.get_handshake_hash()
        transport = mine.into_transport()
        if initiator or len(mine.pattern.messages) > 1:
            assert other.decrypt(transport.send.encrypt_with_ad(b"", b"data")) == b"data"
        if not initiator or len(mine.pattern.messages) > 1:
            assert transport.receive.decrypt_with_ad(b"", bytes(other.encrypt(b"data"))) == b"data"


def pair(name: str = "Noise_XXhfs_25519+MLKEM768_AESGCM_SHA256") -> tuple[HandshakeState, HandshakeState]:
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    first, second = (HandshakeState(Protocol.of(name), initiator=not n, static=keys[n]) for n in range(2))
    return first, second


def finish(first: HandshakeState, second: HandshakeState) -> tuple[Transport, Transport]:
    writer, reader = first, second
    while not first.finished:
        reader.read_message(writer.write_message())
        writer, reader = reader, writer
    return first.into_transport(), second.into_transport()


@pytest.mark.parametrize("base", sorted(name for name, row in PATTERNS.items() if len(row.messages) > 1))
def test_hybrid_patterns_of_every_kind_agree(base: str) -> None:
    protocol = Protocol.of(f"Noise_{base}hfs_25519+MLKEM768_ChaChaPoly_BLAKE2s")
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    known = protocol.pattern.responder_known, protocol.pattern.initiator_known
    sides = [
        HandshakeState(
            protocol,
            initiator=not n,
            static=keys[n],
            remote_static=keys[1 - n].public_key().public_bytes_raw() if known[n] else None,
        )
        for n in range(2)
    ]
    near, far = finish(sides[0], sides[1])
    assert near.handshake_hash == far.handshake_hash
    assert near.export(b"x", 2) == far.export(b"x", 2) != near.export(b"y", 2)
    assert far.receive.decrypt_with_ad(b"a", near.send.encrypt_with_ad(b"a", b"m")) == b"m"


def test_modifiers_land_where_the_specification_says() -> None:
    assert parse("IKhfs").messages == (("e", "e1", "es", "s", "ss"), ("e", "ee", "ekem1", "se"))
    assert parse("XXhfs+psk3").messages[2] == ("s", "se", "psk")
    assert parse("NNpsk0").messages[0] == ("psk", "e")
    for wrong in ("", "ZZ", "XXpsk9", "XXfallback", "Nhfs", "XX+hfs", "xx"):
        with pytest.raises(ValueError, match=r"modifier|pattern|hfs"):
            parse(wrong)
    for wrong in ("Noise_XX_448_AESGCM_SHA256", "Noise_XXhfs_25519_AESGCM_SHA256", "Noise_XX_25519_AES_SHA256", "XX"):
        with pytest.raises(ValueError, match=r"expected|not a"):
            Protocol.of(wrong)


def test_every_bit_of_every_message_matters() -> None:
    """Any change of any handshake message is refused at once, or leaves the two sides unable to talk."""
    for turn in range(3):
        length = len_of_turn(turn)
        for position in range(0, length, 7):
            first, second = pair()
            writer, reader = first, second
            for _ in range(turn):
                reader.read_message(writer.write_message())
                writer, reader = reader, writer
            changed = bytearray(writer.write_message())
            changed[position] ^= 1 << position % 8
            try:
                reader.read_message(bytes(changed))
            except (HandshakeError, IntegrityError):
                with pytest.raises(HandshakeError):
                    reader.read_message(bytes(changed))  # dead for good
                continue
            with pytest.raises((HandshakeError, IntegrityError)):
                talk(reader, writer)


def len_of_turn(turn: int) -> int:
    return (1216, 1200, 64)[turn]


def talk(writer: HandshakeState, reader: HandshakeState) -> None:
    """Go on with a handshake from the middle, then send something."""
    near, far = finish(writer, reader)
    far.receive.decrypt_with_ad(b"", near.send.encrypt_with_ad(b"", b"data"))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 1215])
def test_short_messages_are_refused(length: int) -> None:
    first, second = pair()
    with pytest.raises(HandshakeError, match="too short"):
        second.read_message(first.write_message()[:length])


def test_out_of_turn_and_after_the_end() -> None:
    first, second = pair()
    with pytest.raises(HandshakeError, match="turn"):
        first.read_message(b"")
    with pytest.raises(HandshakeError, match="not finished"):
        first.into_transport()
    finish(first, second)
    for act in (first.write_message, lambda: first.read_message(b""), first.into_transport):
        with pytest.raises(HandshakeError):
            act()


def test_low_order_points_are_refused() -> None:
    first, _ = pair()
    first.write_message()
    with pytest.raises(HandshakeError, match="low-order"):
        first.read_message(bytes(1200))


def test_malformed_kem_key_is_refused() -> None:
    first, second = pair()
    message = first.write_message()
    with pytest.raises(HandshakeError, match="ML-KEM"):
        second.read_message(message[:32] + b"\xff" * 1184)


def test_keys_missing_or_too_many_are_told_at_once() -> None:
    protocol = Protocol.of("Noise_IKpsk2_25519_AESGCM_SHA256")
    mine = X25519PrivateKey.generate()
    theirs = X25519PrivateKey.generate().public_key().public_bytes_raw()
    for wrong in (
        {"static": mine, "psks": (bytes(32),)},
        {"remote_static": theirs, "psks": (bytes(32),)},
        {"static": mine, "remote_static": theirs},
        {"static": mine, "remote_static": theirs, "psks": (b"short",)},
    ):
        with pytest.raises(ValueError, match=r"needs|takes"):
            HandshakeState(protocol, initiator=True, **wrong)  # type: ignore[arg-type]


def test_the_last_nonce_is_never_used() -> None:
    cipher = CipherState(CIPHERS["AESGCM"], bytes(32))
    cipher.set_nonce(LAST_NONCE - 1)
    cipher.encrypt_with_ad(b"", b"last")
    for _ in range(2):
        with pytest.raises(KeyExhausted):
            cipher.encrypt_with_ad(b"", b"one too many")


def test_a_failed_decryption_does_not_count() -> None:
    one, other = (CipherState(CIPHERS["ChaChaPoly"], bytes(32)) for _ in range(2))
    with pytest.raises(IntegrityError):
        other.decrypt_with_ad(b"", bytes(20))
    assert other.decrypt_with_ad(b"", one.encrypt_with_ad(b"", b"m")) == b"m"


def test_rekey_follows_the_specification() -> None:
    cipher = CipherState(CIPHERS["AESGCM"], bytes(range(32)))
    nonce = bytes(4) + b"\xff" * 8
    expected = CIPHERS["AESGCM"].new(bytes(range(32))).encrypt(nonce, bytes(32), b"")[:32]
    cipher.rekey()
    assert cipher._key == expected


def test_nothing_that_holds_keys_prints_copies_or_pickles() -> None:
    first, second = pair()
    near, _ = finish(first, second)
    for secretive in (first, near, near.send):
        assert repr(secretive) == f"<{type(secretive).__name__}>"
        for act in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                act(secretive)
