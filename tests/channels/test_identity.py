"""Identities: what a key file is, who may read it, what a public identity proves, and that nothing secret shows."""

import base64
import copy
import dataclasses
import os
import pickle
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from channels import Identity, KeyFileError, PublicIdentity
from channels.identity import fingerprint_of, proquints
from channels.keyfile import write_file


@pytest.fixture
def me() -> Identity:
    return Identity.generate("radiology", roles=["client"], days=30)


def test_proquints_are_those_of_the_paper() -> None:
    for address, words in (
        ("127.0.0.1", "lusab-babad"),
        ("63.84.220.193", "gutih-tugad"),
        ("140.98.193.141", "mudof-sakat"),
    ):
        assert proquints(bytes(map(int, address.split(".")))) == words


def test_a_fingerprint_is_eight_words_over_name_and_both_keys(me: Identity) -> None:
    words = me.public.fingerprint.split("-")
    assert [len(word) for word in words] == [5] * 8
    public = me.public
    others = {
        fingerprint_of("other", public.signing, public.noise),
        fingerprint_of(public.name, bytes(32), public.noise),
        fingerprint_of(public.name, public.signing, bytes(32)),
        public.fingerprint,
    }
    assert len(others) == 4
    assert me.renew(days=99).public.fingerprint == public.fingerprint


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_key_file_comes_back(me: Identity, tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "me.key"
    me.save(path, passphrase)
    again = Identity.load(path, passphrase)
    assert again.public == me.public
    assert again.noise.private_bytes_raw() == me.noise.private_bytes_raw()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_sealed_file_holds_no_secret_and_needs_its_passphrase(me: Identity, tmp_path: Path) -> None:
    path = tmp_path / "me.key"
    me.save(path, "correct horse")
    text = path.read_text()
    assert "secret" not in text
    with pytest.raises(KeyFileError, match="passphrase"):
        Identity.load(path)
    with pytest.raises(KeyFileError, match="does not open"):
        Identity.load(path, "wrong")
    path.write_text(text.replace("radiology", "pathology"))
    with pytest.raises(KeyFileError, match="self-signature"):
        Identity.load(path, "correct horse")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_open_to_others_is_refused(me: Identity, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "me.key"
    me.save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Identity.load(path)


def test_a_link_to_a_key_file_is_refused(me: Identity, tmp_path: Path) -> None:
    me.save(tmp_path / "real.key")
    (tmp_path / "link.key").symlink_to(tmp_path / "real.key")
    with pytest.raises(KeyFileError, match="cannot read"):
        Identity.load(tmp_path / "link.key")


def test_keys_are_never_overwritten_and_drafts_do_not_stay(me: Identity, tmp_path: Path) -> None:
    path = tmp_path / "me.key"
    me.save(path)
    with pytest.raises(KeyFileError, match="exists already"):
        me.save(path)
    with pytest.raises(KeyFileError, match="cannot write"):
        write_file(tmp_path / "no" / "such", "x", mode=0o600)
    assert os.listdir(tmp_path) == ["me.key"]


def test_a_public_identity_comes_back_as_text(me: Identity, tmp_path: Path) -> None:
    me.public.save(tmp_path / "me.toml")
    assert PublicIdentity.load(tmp_path / "me.toml") == me.public
    assert len(me.public.dumps()) < 500


@pytest.mark.parametrize("field", ["name", "roles", "signing", "noise", "expires", "signature"])
def test_every_field_is_signed(me: Identity, field: str) -> None:
    other = Identity.generate("other", days=60)
    forged = dataclasses.replace(me.public, **{field: getattr(other.public, field)})
    with pytest.raises(KeyFileError, match="self-signature"):
        forged.verify()


@pytest.mark.parametrize(
    "text",
    ["", "format = 1", "not toml at all [", 'format = "secsplit public identity 1"\nname = "x"', 'format = "other"'],
)
def test_other_files_are_refused_by_name(text: str) -> None:
    with pytest.raises(KeyFileError):
        PublicIdentity.loads(text)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(KeyFileError, match="at most"):
        PublicIdentity.load(path)


@pytest.mark.parametrize("name", ["", "a b", "-x", "a" * 65, 'a"b', "a\nb", "../x"])
def test_names_are_plain_words(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Identity.generate(name)


def test_expiry(me: Identity) -> None:
    assert not me.public.expired
    assert me.renew(days=-1).public.expired


def test_no_secret_in_repr_pickle_or_traceback(me: Identity, tmp_path: Path) -> None:
    assert repr(me) == "<Identity>"
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="never copied"):
            act(me)
    path = tmp_path / "me.key"
    me.save(path)
    shown = crash(lambda: me.save(path)) + crash(lambda: me.save(tmp_path / "none" / "me.key"))
    text = path.read_text()
    for spoiled in (text.replace("radiology", "other"), text + "["):
        path.write_text(spoiled)
        shown += crash(lambda: Identity.load(path))
    for word in ("exists already", "cannot write", "self-signature", "not TOML"):
        assert word in shown
    both = me.signing.private_bytes_raw() + me.noise.private_bytes_raw()
    forms = [base64.b64encode(both).decode()[4:40]]
    forms += [form for half in (both[:32], both[32:]) for form in (half.hex(), repr(half)[2:-1])]
    assert not [form for form in forms if form in shown]


def crash(act: Callable[[], object]) -> str:
    """What a crash reporter that prints every variable would print."""
    try:
        act()
    except KeyFileError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("no error")
