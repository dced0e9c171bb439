"""Noise against others' vectors: cacophony, snow, and the one published hybrid handshake; then its own edges."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from channels.noise import HandshakeState, Protocol
from channels.primitives import X25519PrivateKey

VECTORS = Path(__file__).parents[1] / "vectors" / "noise"


def load(name: str) -> list[dict[str, Any]]:
    raw = (VECTORS / name).read_bytes()
    vectors: list[dict[str, Any]] = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)["vectors"]
    return vectors


def side(vector: dict[str, Any], role: str) -> HandshakeState:
    def key(name: str) -> X25519PrivateKey | None:
        raw = vector.get(f"{role}_{name}")
        return X25519PrivateKey.from_private_bytes(bytes.fromhex(raw)) if raw else None

    remote = vector.get(f"{role}_remote_static")
    return HandshakeState(
        Protocol.of(vector["protocol_name"]),
        initiator=role == "init",
        prologue=bytes.fromhex(vector[f"{role}_prologue"]),
        static=key("static"),
        remote_static=bytes.fromhex(remote) if remote else None,
        psks=tuple(map(bytes.fromhex, vector.get(f"{role}_psks", []))),
        ephemeral_for_testing_only=key("ephemeral"),
    )


@pytest.mark.parametrize(("name", "count"), [("cacophony-25519.json.gz", 472), ("snow.json.gz", 408)])
def test_every_published_handshake_and_transport_message(name: str, count: int) -> None:
    vectors = load(name)
    for vector in vectors:
        initiator, responder = side(vector, "init"), side(vector, "resp")
        writer, reader = initiator, responder
        transports = None
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
