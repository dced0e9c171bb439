"""Rosters: who is listed, who signed, and that time only goes forward."""

import dataclasses
from pathlib import Path

import pytest

from channels import Identity, IdentityMismatch, KeyFileError, Roster, RosterExpired, RosterRollback, UnknownPeer

BOSS, ANN, BEN = (Identity.generate(name, roles=["client"]) for name in ("boss", "ann", "ben"))


def roster(epoch: int = 1, *parties: Identity) -> Roster:
    return Roster.of([party.public for party in parties or (ANN, BEN)], epoch=epoch, signer=BOSS)


def test_it_comes_back_from_its_file_under_the_pinned_signer(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    roster().save(path)
    assert Roster.load(path, BOSS.public) == roster()
    assert Roster.load(path, BOSS.public.fingerprint) == roster()
    with pytest.raises(KeyFileError, match=r"expected.*pinned"):
        Roster.load(path, ANN.public)


def test_parties_are_found_by_name_and_by_key() -> None:
    assert roster().by_name("ann") == ANN.public
    assert roster().by_key(BEN.public.noise) == BEN.public
    assert [party.name for party in roster()] == ["ann", "ben"]
    with pytest.raises(UnknownPeer, match="lists ann, ben"):
        roster().by_name("carol")
    with pytest.raises(UnknownPeer, match="stranger"):
        roster().by_key(bytes(32))
    with pytest.raises(IdentityMismatch, match="ben's"):
        roster().expect("ann", BEN.public.noise)


def test_an_expired_party_is_refused_by_name() -> None:
    late = ANN.renew(days=-1)
    with pytest.raises(RosterExpired, match="ann"):
        roster(1, late, BEN).by_key(late.public.noise)


def test_nobody_is_listed_twice() -> None:
    with pytest.raises(ValueError, match="name is listed twice"):
        roster(1, ANN, Identity.generate("ann"))
    twin = dataclasses.replace(ANN.public, name="twin")
    with pytest.raises(KeyFileError, match="self-signature"):
        Roster.of([ANN.public, twin], epoch=1, signer=BOSS)


@pytest.mark.parametrize("change", ["epoch", "leave out", "add", "renew"])
def test_any_change_breaks_the_signature(change: str) -> None:
    signed = roster()
    forged = {
        "epoch": dataclasses.replace(signed, epoch=2),
        "leave out": dataclasses.replace(signed, parties=signed.parties[:1]),
        "add": dataclasses.replace(signed, parties=(*signed.parties, Identity.generate("eve").public)),
        "renew": dataclasses.replace(signed, parties=(ANN.renew(days=999).public, BEN.public)),
    }[change]
    with pytest.raises(KeyFileError, match="not signed by boss"):
        Roster.loads(forged.dumps(), BOSS.public)


def test_rollback_and_two_rosters_of_one_epoch_are_refused(tmp_path: Path) -> None:
    path, seen = tmp_path / "roster.toml", tmp_path / "seen"
    for epoch in (3, 5, 5):
        roster(epoch).save(path)
        assert Roster.load(path, BOSS.public, seen=seen).epoch == epoch
    roster(4).save(path)
    with pytest.raises(RosterRollback, match="epoch 5 was already accepted"):
        Roster.load(path, BOSS.public, seen=seen)
    roster(5, ANN).save(path)
    with pytest.raises(RosterRollback, match="same epoch"):
        Roster.load(path, BOSS.public, seen=seen)
    seen.write_text("nonsense")
    with pytest.raises(KeyFileError, match="holds no epoch"):
        Roster.load(path, BOSS.public, seen=seen)


def test_leaving_out_is_revocation_and_adding_touches_no_other_key() -> None:
    carol = Identity.generate("carol")
    grown, shrunk = roster(2, ANN, BEN, carol), roster(3, ANN, carol)
    assert {party.noise for party in grown} > {party.noise for party in roster()}
    with pytest.raises(UnknownPeer):
        shrunk.by_key(BEN.public.noise)


@pytest.mark.parametrize("text", ["", "epoch = 1", 'format = "secsplit roster 1"', "[["])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(KeyFileError):
        Roster.loads(text, BOSS.public)
