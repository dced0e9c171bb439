"""The primitives against Wycheproof, through the very calls the record layer makes; counts are asserted, none skipped
but AES-GCM nonce and key sizes that this project never uses."""

import gzip
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nacl.bindings
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from channels.primitives import CIPHERS, HASHES, MLKEM768PrivateKey, X25519PrivateKey, check_kem_key, dh, hkdf

VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof"


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    document = json.loads(gzip.decompress((VECTORS / f"{name}_test.json.gz").read_bytes()))
    for group in document["testGroups"]:
        for case in group["tests"]:
            yield group, {k: bytes.fromhex(v) if k in RAW else v for k, v in case.items()}


RAW = {"key", "iv", "aad", "msg", "ct", "tag", "private", "public", "shared", "sig", "ikm", "salt", "info", "okm"}
RAW |= {"seed", "ek", "c", "K", "dk", "m"}


@pytest.mark.parametrize(
    ("name", "cipher", "count"), [("aes_gcm", "AESGCM", 66), ("chacha20_poly1305", "ChaChaPoly", 316)]
)
def test_aead(name: str, cipher: str, count: int) -> None:
    used = 0
    for group, case in cases(name):
        if (group["ivSize"], group["keySize"]) != (96, 256):
            continue
        used += 1
        aead = CIPHERS[cipher].new(case["key"])
        sealed = bytearray(case["ct"] + case["tag"])
        valid = case["result"] == "valid"
        out = memoryview(sealed)[: len(case["msg"])]  # in place, as records are opened
        if valid:
            made = bytearray(len(case["msg"]) + 16)
            aead.encrypt_into(case["iv"], case["msg"], case["aad"], made)
            assert made == sealed, case["tcId"]
            aead.decrypt_into(case["iv"], sealed, case["aad"], out)
            assert bytes(out) == case["msg"], case["tcId"]
        else:
            with pytest.raises(InvalidTag):
                aead.decrypt_into(case["iv"], sealed, case["aad"], out)
    assert used == count


def test_x25519() -> None:
    """Agreement with every vector; every low-order point, whose product is zero, is rejected."""
    low_order = 0
    total = 0
    for _, case in cases("x25519"):
        total += 1
        private = X25519PrivateKey.from_private_bytes(case["private"])
        if case["shared"] == bytes(32):
            low_order += 1
            with pytest.raises(ValueError, match=r".*"):
                dh(private, case["public"])
        else:
            assert dh(private, case["public"]) == case["shared"], case["tcId"]
            assert nacl.bindings.crypto_scalarmult(case["private"], case["public"]) == case["shared"]
    assert (total, low_order) == (518, 31)


def test_ed25519() -> None:
    total = 0
    for group, case in cases("ed25519"):
        total += 1
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(group["publicKey"]["pk"]))
        if case["result"] == "valid":
            key.verify(case["sig"], case["msg"])
        else:
            with pytest.raises(InvalidSignature):
                key.verify(case["sig"], case["msg"])
    assert total == 151


def test_hkdf() -> None:
    """Wycheproof against the library's HKDF; then ours, which is Noise's form of it, against the library's."""
    total = 0
    for _, case in cases("hkdf_sha256"):
        total += 1
        try:
            made = HKDF(hashes.SHA256(), case["size"], case["salt"], case["info"]).derive(case["ikm"])
        except ValueError:
            made = None
        assert (made == case["okm"]) == (case["result"] == "valid"), case["tcId"]
        salt = case["salt"].ljust(32, b"\0")
        blocks = HKDF(hashes.SHA256(), 96, salt, b"").derive(case["ikm"])
        assert b"".join(hkdf(HASHES["SHA256"], salt, case["ikm"], 3)) == blocks
    assert total == 86


@pytest.mark.parametrize("name", HASHES)
def test_hkdf_is_the_chain_the_specification_writes_out(name: str) -> None:
    hash_ = HASHES[name]
    key, material = b"k" * hash_.length, b"material"
    secret = hmac.new(key, material, name.lower()).digest()
    first = hmac.new(secret, b"\1", name.lower()).digest()
    second = hmac.new(secret, first + b"\2", name.lower()).digest()
    assert hkdf(hash_, key, material, 2) == [first, second]
    assert hash_.digest(b"x") == hashlib.new(name.lower(), b"x").digest()


def test_mlkem_keys_from_seeds() -> None:
    total = 0
    for _, case in cases("mlkem_768_keygen_seed"):
        total += 1
        private = MLKEM768PrivateKey.from_seed_bytes(case["seed"])
        assert private.public_key().public_bytes_raw() == case["ek"]
    assert total == 100


def test_mlkem_decapsulation() -> None:
    total = 0
    for _, case in cases("mlkem_768"):
        total += 1
        if case["result"] != "valid":
            with pytest.raises(ValueError, match=r".*"):
                MLKEM768PrivateKey.from_seed_bytes(case["seed"]).decapsulate(case["c"])
        else:
            assert MLKEM768PrivateKey.from_seed_bytes(case["seed"]).decapsulate(case["c"]) == case["K"], case["tcId"]
    assert total == 193


def test_mlkem_public_keys_out_of_range_are_refused() -> None:
    """Encapsulation randomness cannot be given to the library, so its valid vectors test the key check only."""
    refused = 0
    for _, case in cases("mlkem_768_encaps"):
        if case["result"] == "valid":
            check_kem_key(case["ek"])
        else:
            refused += 1
            with pytest.raises(ValueError, match=r".*"):
                check_kem_key(case["ek"])
    assert refused == 132


def test_nonces_are_the_counter_each_cipher_writes_its_own_way() -> None:
    assert CIPHERS["AESGCM"].nonce(0, 1) == bytes(11) + b"\1"
    assert CIPHERS["ChaChaPoly"].nonce(0, 1) == bytes(4) + b"\1" + bytes(7)
