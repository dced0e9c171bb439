"""Invites: what they hold, who may use them, once; what a restart or a race cannot change."""

import copy
import os
import pickle
import stat
import threading
import time
from pathlib import Path

import pytest

from channels import Identity, Invite, InviteRefused, Invites, KeyFileError, PublicIdentity

HOST = Identity.generate("host")
NEW = Identity.generate("radiology", roles=["client"])


def of(**changes: object) -> Invite:
    return Invite.of("radiology", HOST.public, **{"roles": ["client"], "address": "h:1", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("guest", ["", NEW.public.fingerprint], ids=["anybody", "one newcomer"])
def test_a_saved_invite_comes_back_whole(tmp_path: Path, guest: str) -> None:
    invite = of(guest=guest)
    invite.save(tmp_path / "x.invite")
    again = Invite.load(tmp_path / "x.invite")
    assert [getattr(again, name) for name in Invite.__slots__] == [getattr(invite, name) for name in Invite.__slots__]
    assert again.number == invite.number
    assert len(invite.secret) == (0 if guest else 32)
    assert stat.S_IMODE((tmp_path / "x.invite").stat().st_mode) == 0o600


def test_the_secret_does_not_show() -> None:
    invite = of()
    with pytest.raises(TypeError):
        pickle.dumps(invite)
    with pytest.raises(TypeError):
        copy.copy(invite)
    assert repr(invite) == "<Invite>"
    assert invite.secret.hex() not in invite.number.hex()
    assert of().number != of().number
    assert of(guest=NEW.public.fingerprint).number == of(guest=NEW.public.fingerprint).number


def test_an_invite_open_to_others_is_not_read(tmp_path: Path) -> None:
    of().save(tmp_path / "x.invite")
    os.chmod(tmp_path / "x.invite", 0o644)
    with pytest.raises(KeyFileError, match="open to others"):
        Invite.load(tmp_path / "x.invite")


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("secret", 'secret = "AAAA"'),
        ("host", 'host = "nobody"'),
        ("name", 'name = "../../etc/passwd"'),
        ("expires", "expires = 7"),
        ("guest", 'guest = "lusab"'),
        ("roles", "roles = 3"),
        ("secret", 'secret = ""'),
    ],
)
def test_a_damaged_invite_is_refused(tmp_path: Path, line: str, other: str) -> None:
    of().save(tmp_path / "x.invite")
    lines = (tmp_path / "x.invite").read_text().splitlines()
    (tmp_path / "x.invite").write_text("\n".join(other if old.startswith(f"{line} =") else old for old in lines))
    with pytest.raises(KeyFileError, match="damaged"):
        Invite.load(tmp_path / "x.invite")


def test_an_invite_is_used_once_even_after_a_restart(tmp_path: Path) -> None:
    invite = of()
    Invites(tmp_path).issue(invite)
    entry = Invites(tmp_path).use(Invites(tmp_path).find(invite.number), NEW.public)
    assert PublicIdentity.load(entry) == NEW.public
    entry.unlink()
    again = Invites(tmp_path)  # as after a restart
    assert again.open() == []
    with pytest.raises(InviteRefused, match="already been used"):
        again.find(invite.number)
    with pytest.raises(InviteRefused, match="already been used"):
        again.use(invite, NEW.public)
    with pytest.raises(KeyFileError, match="used before"):
        again.issue(invite)
    left = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in left  # once used, the secret is gone from the disk


def test_of_many_at_once_one_gets_in(tmp_path: Path) -> None:
    invite, book = of(), Invites(tmp_path)
    book.issue(invite)
    got: list[object] = []
    gate = threading.Barrier(8)

    def use() -> None:
        mine = Invites(tmp_path)
        found = mine.find(invite.number)
        gate.wait()
        try:
            got.append(mine.use(found, NEW.public))
        except InviteRefused as error:
            got.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Path) for one in got) == 1
    assert len(got) == 8


REFUSED = {
    "another name": lambda: (of(), Identity.generate("pathology", roles=["client"])),
    "another role": lambda: (of(), Identity.generate("radiology", roles=["server"])),
    "another key": lambda: (of(guest=NEW.public.fingerprint), Identity.generate("radiology", roles=["client"])),
    "expired invite": lambda: (of(days=-1), NEW),
    "expired identity": lambda: (of(), Identity.generate("radiology", roles=["client"], days=-1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_only_who_was_invited_may_use_it_and_in_time(tmp_path: Path, case: str) -> None:
    invite, identity = REFUSED[case]()
    book = Invites(tmp_path)
    book.issue(invite)
    with pytest.raises(InviteRefused):
        book.use(invite, identity.public)
    assert not list(book.pending.iterdir())


def test_who_waits_already_is_not_replaced(tmp_path: Path) -> None:
    book, first, second = Invites(tmp_path), of(), of()
    book.issue(first)
    book.issue(second)
    book.use(first, NEW.public)
    other = Identity.generate("radiology", roles=["client"]).public
    with pytest.raises(InviteRefused, match="waits already"):
        book.use(second, other)
    assert [invite.number for invite in book.open()] == [second.number]  # and is not used up by that
    assert time.time() < second.expires
