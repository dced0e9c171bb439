"""Who meets whom: the named attacks on a key exchange, each as a script, and what each side is told.

Conversations are driven without a wire; where a test needs to be an attacker it uses the Noise objects directly.
"""

import dataclasses
import logging

import pytest

from channels import (
    DigestMismatch,
    HandshakeError,
    Identity,
    IdentityMismatch,
    Limits,
    Roster,
    RosterExpired,
    SuiteRefused,
    UnknownPeer,
    noise,
)
from channels.handshake import PREFACE, NoiseIK, agree, frame
from channels.meeting import Agreement, Claims, Conversation, Side
from channels.noise import HandshakeState
from channels.primitives import X25519PrivateKey
from channels.records import Kind
from channels.suites import ENROLLED, IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL, IKHFS_AESGCM, IKHFS_CHACHA, offer

BOSS, ANN, BEN, EVE = (Identity.generate(name) for name in ("boss", "ann", "ben", "eve"))
DIGEST = b"d" * 32
IK = NoiseIK()


def roster(*parties: Identity, epoch: int = 1) -> Roster:
    return Roster.of([party.public for party in parties], epoch=epoch, signer=BOSS)


def side(me: Identity, *others: Identity, digest: bytes = DIGEST, epoch: int = 1) -> Side:
    return Side(me, roster(me, *others, epoch=epoch), digest)


def talk(initiator: Conversation, responder: Conversation) -> tuple[Agreement | Exception, Agreement | Exception]:
    """Run both to their ends, carrying what each says to the other; what each came to."""
    ends: list[Agreement | Exception | None] = [None, None]
    sides, inboxes, asks = (initiator, responder), (bytearray(), bytearray()), []
    for n, conversation in enumerate(sides):
        asks.append(next(conversation))
        inboxes[1 - n].extend(asks[n].say)
    while True:
        moved = False
        for n, conversation in enumerate(sides):
            if ends[n] is None and len(inboxes[n]) >= asks[n].want:
                heard = bytes(inboxes[n][: asks[n].want])
                del inboxes[n][: asks[n].want]
                moved = True
                try:
                    asks[n] = conversation.send(heard)
                    inboxes[1 - n].extend(asks[n].say)
                except StopIteration as done:
                    ends[n] = done.value
                except HandshakeError as error:
                    ends[n] = error
        if not moved:
            left, right = (end if end is not None else EOFError("left waiting") for end in ends)
            return left, right


def meet(near: Side, far: Side, ours: NoiseIK = IK, theirs: NoiseIK = IK):  # type: ignore[no-untyped-def]
    return talk(ours.initiate(near, near.roster.by_name(far.me.public.name)), theirs.respond(far))


def test_two_parties_of_one_roster_agree_on_everything() -> None:
    near, far = meet(side(ANN, BEN, epoch=4), side(BEN, ANN, epoch=5))
    assert near.binding == far.binding
    assert (near.peer, far.peer) == (BEN.public, ANN.public)
    assert (near.peer_epoch, far.peer_epoch) == (5, 4)
    assert near.suite == "Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256"


def test_no_two_meetings_share_a_binding() -> None:
    assert len({meet(side(ANN, BEN), side(BEN, ANN))[0].binding for _ in range(5)}) == 5


def test_what_travels_is_small_and_of_constant_length() -> None:
    """Names of any length, 1280 + 1152 bytes of hybrid Noise, a preface, claims and a hello: under 2.8 KB."""
    totals = set()
    for name in ("x", "a-hospital-with-a-very-long-name-indeed.example"):
        far = Identity.generate(name)
        said, conversation = 0, NoiseIK().initiate(side(ANN, far), far.public)
        ask = next(conversation)
        said += len(ask.say)
        responder = NoiseIK().respond(side(far, ANN))
        next(responder)
        responder.send(ask.say[:2])
        totals.add(said + len(responder.send(ask.say[2:]).say) + 32)
    assert len(totals) == 1
    assert max(totals) < 2800


# -- disagreement --------------------------------------------------------------------------------------------------


def test_a_differing_run_is_named_on_both_sides_but_only_to_enrolled_peers() -> None:
    near, far = meet(side(ANN, BEN, digest=b"1" * 32), side(BEN, ANN, digest=b"2" * 32))
    for end, peer in ((near, "ben"), (far, "ann")):
        assert isinstance(end, DigestMismatch)
        assert end.peer == peer
        assert "same run file" in str(end)
    stranger, host = meet(side(EVE, BEN, digest=b"1" * 32), side(BEN, ANN, digest=b"2" * 32))
    assert isinstance(host, UnknownPeer)
    assert isinstance(stranger, EOFError)


def test_binding_and_record_keys_depend_on_the_run_and_on_both_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are said under seal, not in the prologue; each ciphertext enters the transcript, so the effect is the same:
    with all randomness fixed, another digest or another epoch on either side gives another channel."""
    fixed = [X25519PrivateKey.generate() for _ in range(2)]

    class Fixed:
        @staticmethod
        def generate() -> X25519PrivateKey:
            return next(turn)

    monkeypatch.setattr(noise, "X25519PrivateKey", Fixed)
    classical = NoiseIK((IK_AESGCM_CLASSICAL,))  # an encapsulation cannot be made to repeat
    made = []
    for digest, near, far in ((DIGEST, 1, 1), (DIGEST, 1, 1), (b"e" * 32, 1, 1), (DIGEST, 2, 1), (DIGEST, 1, 2)):
        turn = iter(fixed)
        ends = side(ANN, BEN, digest=digest, epoch=near), side(BEN, ANN, digest=digest, epoch=far)
        agreed = meet(*ends, classical, classical)
        assert agreed[0].binding == agreed[1].binding
        made.append((agreed[0].binding, agreed[0].sealer.keys._key, agreed[1].sealer.keys._key))
    assert made[0] == made[1]
    for column in zip(*made[1:], strict=True):
        assert len(set(column)) == 4


def test_a_digest_of_another_length_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        side(ANN, BEN, digest=b"short")


# -- strangers, the expired, the revoked ---------------------------------------------------------------------------


def test_a_stranger_is_answered_nothing_and_its_claimed_fingerprint_is_logged() -> None:
    stranger, host = meet(side(EVE, BEN), side(BEN, ANN))
    assert isinstance(stranger, EOFError)
    assert isinstance(host, UnknownPeer)
    assert EVE.public.fingerprint in str(host)


def test_a_revoked_party_is_a_stranger() -> None:
    _, before = meet(side(ANN, BEN), side(BEN, ANN, epoch=1))
    assert isinstance(before, Agreement)
    revoked, host = meet(side(ANN, BEN), side(BEN, EVE, epoch=2))
    assert isinstance(revoked, EOFError)
    assert isinstance(host, UnknownPeer)


def test_an_expired_party_is_answered_nothing() -> None:
    late = ANN.renew(days=-1)
    near, far = meet(side(late, BEN), Side(BEN, roster(BEN, late), DIGEST))
    assert isinstance(near, EOFError)
    assert isinstance(far, RosterExpired)


def test_the_wrong_responder_cannot_answer() -> None:
    """Dialled by name and key: another enrolled party at that address cannot even read the first message."""
    initiator = NoiseIK().initiate(side(ANN, BEN, EVE), BEN.public)
    near, far = talk(initiator, NoiseIK().respond(side(EVE, ANN, BEN)))
    assert isinstance(near, EOFError)
    assert isinstance(far, HandshakeError)
    assert "made for another key" in str(far)


# -- downgrade -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL])
def test_classical_suites_are_refused_unless_policy_allows_them(suite) -> None:  # type: ignore[no-untyped-def]
    near, far = meet(side(ANN, BEN), side(BEN, ANN), NoiseIK((suite,)))
    assert isinstance(near, EOFError)
    assert isinstance(far, SuiteRefused)
    allowed = NoiseIK((*ENROLLED, suite))
    near, far = meet(side(ANN, BEN), side(BEN, ANN), NoiseIK((suite,)), allowed)
    assert isinstance(near, Agreement)
    assert near.suite == far.suite == suite.name


def test_the_responder_never_lowers() -> None:
    """Both can do better than what was chosen: refused, even though policy allows the choice."""
    policy = NoiseIK((*ENROLLED, IK_AESGCM_CLASSICAL))
    near, far = meet(side(ANN, BEN), side(BEN, ANN), NoiseIK((IK_AESGCM_CLASSICAL, IKHFS_AESGCM)), policy)
    assert isinstance(far, SuiteRefused)
    assert "do better" in str(far)
    assert isinstance(near, EOFError)


@pytest.mark.parametrize("field", range(PREFACE.size))
def test_any_edit_of_the_preface_breaks_the_handshake(field: int) -> None:
    """An active attacker who takes the strong suites off the list, or changes the version, record size or magic."""
    policy = NoiseIK((IKHFS_AESGCM, IKHFS_CHACHA, IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL))
    initiator = policy.initiate(side(ANN, BEN), BEN.public)
    message = bytearray(next(initiator).say)
    message[2 + field] ^= 1 << field % 8
    responder = policy.respond(side(BEN, ANN))
    next(responder)
    responder.send(bytes(message[:2]))
    with pytest.raises(HandshakeError):
        responder.send(bytes(message[2:]))


def test_stripping_the_strong_suites_from_the_offer_is_noticed() -> None:
    policy = NoiseIK((IK_AESGCM_CLASSICAL, IKHFS_AESGCM))
    initiator = policy.initiate(side(ANN, BEN), BEN.public)
    message = next(initiator).say[2:]
    fields = list(PREFACE.unpack(message[: PREFACE.size]))
    fields[3] = offer([IK_AESGCM_CLASSICAL])
    responder = NoiseIK((*ENROLLED, IK_AESGCM_CLASSICAL)).respond(side(BEN, ANN))
    next(responder)
    responder.send(len(message).to_bytes(2, "big"))
    with pytest.raises(HandshakeError, match="did not open"):
        responder.send(PREFACE.pack(*fields) + message[PREFACE.size :])


@pytest.mark.parametrize("bits", [0, 13, 23, 255])
def test_record_sizes_out_of_range_are_refused(bits: int) -> None:
    responder = NoiseIK().respond(side(BEN, ANN))
    next(responder)
    responder.send((100).to_bytes(2, "big"))
    with pytest.raises(SuiteRefused, match="record size"):
        responder.send(PREFACE.pack(b"SECSPLIT", 1, 1, 2, bits, 0).ljust(100, b"\0"))


def test_record_sizes_are_the_initiators() -> None:
    near = dataclasses.replace(side(ANN, BEN), limits=Limits(record=1 << 14))
    ours, theirs = meet(near, side(BEN, ANN))
    assert ours.sealer.limits.record == theirs.sealer.limits.record == 1 << 14


# -- the classical attacks -----------------------------------------------------------------------------------------


def test_unknown_key_share() -> None:
    """Eve has Ann's public key listed as her own in Ben's roster: Ann and Ben must not come to share a session in which
    Ben believes to talk to Eve."""
    stolen = dataclasses.replace(EVE.public, noise=ANN.public.noise)
    signed = dataclasses.replace(stolen, signature=EVE.sign(stolen.statement()))
    tricked = Roster.of([BEN.public, signed], epoch=1, signer=BOSS)
    near, far = talk(NoiseIK().initiate(side(ANN, BEN), BEN.public), NoiseIK().respond(Side(BEN, tricked, DIGEST)))
    assert isinstance(far, IdentityMismatch)
    assert isinstance(near, EOFError)


def test_key_compromise_impersonation_gains_nothing() -> None:
    """With Ben's stolen static key anybody can forge IK's first message as if from Ann (a known limit of IK): it is
    answered, but the forger can neither read the answer nor say the hello, so Ben never hands out a channel."""
    preface = PREFACE.pack(b"SECSPLIT", 1, IKHFS_AESGCM.number, offer(ENROLLED), 20, 0)
    forger = HandshakeState(
        IKHFS_AESGCM.protocol,
        initiator=True,
        prologue=preface,
        static=X25519PrivateKey.generate(),
        remote_static=BEN.public.noise,
    )
    impersonate(forger, ann_public=ANN.public.noise, ben_private=BEN.noise)
    claims = Claims(DIGEST, 1, ANN.public.fingerprint, BEN.public.fingerprint)
    responder = NoiseIK().respond(side(BEN, ANN))
    next(responder)
    message = frame(preface + forger.write_message(claims.pack()))
    responder.send(message[:2])
    answer = responder.send(message[2:])
    assert len(answer.say) > 1152  # the forgery is taken for Ann's: this is the limit itself
    with pytest.raises(Exception, match="did not open"):
        forger.read_message(answer.say[2:])
    guess = agree(side(EVE, BEN), IKHFS_AESGCM, Limits(), BEN.public, claims, finished_by_guess(preface))
    (hello,) = guess.sealer.seal(Kind.HELLO, b"")
    with pytest.raises(HandshakeError, match="no hello"):
        responder.send(bytes(hello))


def impersonate(forger: HandshakeState, *, ann_public: bytes, ben_private: X25519PrivateKey) -> None:
    """Claim Ann's static key; the one product that needs her private key is made with Ben's stolen one instead."""

    class Stolen:
        """DH(s, S) computed from the other end."""

        def exchange(self, peer: object) -> bytes:
            return noise.dh(ben_private, ann_public)

    forger._public = ann_public
    forger._s = Stolen()  # type: ignore[assignment]


def finished_by_guess(preface: bytes):  # type: ignore[no-untyped-def]
    """Keys that a forger without Ann's private key might try."""
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    ends = [
        HandshakeState(
            IKHFS_AESGCM.protocol,
            initiator=not n,
            prologue=preface,
            static=keys[n],
            remote_static=keys[1].public_key().public_bytes_raw() if not n else None,
        )
        for n in range(2)
    ]
    ends[1].read_message(ends[0].write_message())
    ends[0].read_message(ends[1].write_message())
    return ends[0].into_transport()


def test_an_initiators_stolen_key_does_not_let_others_play_the_responder() -> None:
    """KCI the other way: with Ann's private key Eve still cannot answer in Ben's name."""
    initiator = NoiseIK().initiate(side(ANN, BEN), BEN.public)
    near, far = talk(initiator, NoiseIK().respond(Side(ANN, roster(ANN, BEN), DIGEST)))
    assert isinstance(near, EOFError)
    assert isinstance(far, HandshakeError)


def test_a_party_does_not_talk_to_itself() -> None:
    """A reflected connection would otherwise agree with itself on both directions' keys."""
    near, far = talk(NoiseIK().initiate(side(ANN, BEN), ANN.public), NoiseIK().respond(side(ANN, BEN)))
    assert not isinstance(near, Agreement)
    assert not isinstance(far, Agreement)


def test_our_own_identity_must_be_listed_and_in_time(caplog: pytest.LogCaptureFixture) -> None:
    from channels import Listener, connect

    for who, listed, error in ((EVE, roster(ANN, BEN), UnknownPeer), (ANN.renew(days=-1), None, RosterExpired)):
        known = listed or roster(who, BEN)
        with pytest.raises(error, match="our own identity"):
            connect("127.0.0.1:1", who, known, "ben", digest=DIGEST, timeout=0)
        with pytest.raises(error, match="our own identity"):
            Listener("127.0.0.1:0", who, known, digest=DIGEST)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
