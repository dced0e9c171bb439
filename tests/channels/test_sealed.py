"""Envelopes: read by the one they are for, under the name of the one who wrote them, and by nobody else."""

import pytest

from channels import Identity, IntegrityError
from channels.sealed import OVERHEAD, open_sealed, seal

ANN, BEN, EVE = (Identity.generate(name) for name in ("ann", "ben", "eve"))


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_it_arrives(size: int) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    envelope = seal(memoryview(message)[:size], ANN, BEN.public, context=b"run")
    assert open_sealed(envelope, BEN, ANN.public, context=b"run") == message[:size]
    assert len(envelope) == size + OVERHEAD


def test_the_carrier_reads_nothing_and_no_two_are_alike() -> None:
    first, second = (seal(b"weights" * 100, ANN, BEN.public, context=b"run") for _ in range(2))
    assert first != second
    assert b"weights" not in first


@pytest.mark.parametrize("wrong", ["reader", "writer", "context"])
def test_only_the_named_reader_writer_and_context_fit(wrong: str) -> None:
    envelope = seal(b"weights", ANN, BEN.public, context=b"run")
    reader = EVE if wrong == "reader" else BEN
    writer = EVE.public if wrong == "writer" else ANN.public
    with pytest.raises(IntegrityError, match="not sealed by"):
        open_sealed(envelope, reader, writer, context=b"other" if wrong == "context" else b"run")


def test_every_byte_matters() -> None:
    envelope = seal(b"weights", ANN, BEN.public, context=b"run")
    for position in range(len(envelope)):
        changed = bytearray(envelope)
        changed[position] ^= 1
        with pytest.raises(IntegrityError):
            open_sealed(bytes(changed), BEN, ANN.public, context=b"run")
    for length in (0, 31, 32, 48, len(envelope) - 1):
        with pytest.raises(IntegrityError):
            open_sealed(envelope[:length], BEN, ANN.public, context=b"run")


def test_a_reader_cannot_pass_an_envelope_on_as_if_meant_for_another() -> None:
    """Ben may read it and encrypt its inside anew for Eve; the signature names Ben as the reader."""
    from channels.primitives import X25519PublicKey
    from channels.sealed import SUITE, _info

    envelope = seal(b"for ben", ANN, BEN.public, context=b"run")
    inside = SUITE.decrypt(envelope, BEN.noise, info=_info(ANN.public, BEN.public, b"run"))
    key = X25519PublicKey.from_public_bytes(EVE.public.noise)
    forged = SUITE.encrypt(inside, key, info=_info(ANN.public, EVE.public, b"run"))
    with pytest.raises(IntegrityError):
        open_sealed(forged, EVE, ANN.public, context=b"run")
