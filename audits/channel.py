"""The channel under attack: every fault that a tap on the wire can commit, and what came out at the other end.

Fresh identities meet over each channel that the project has, by every suite and over TLS, with a tap between them; the
tap commits one fault, in the handshake or in the records after it. A channel is sound where nothing but a prefix of
what was sent is ever delivered: whatever is changed, dropped, repeated or put elsewhere ends it (a dialler may then
dial anew). What a wiretap still sees is lengths and times, and is not judged here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from audits.frozen import Frozen
from channels import ChannelError, Identity, Listener, PeerClosed, Roster, connect
from channels.handshake import NoiseIK
from channels.meeting import Handshake
from channels.suites import ENROLLED, IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL
from channels.tap import Direction, Fault, Kind, Tap
from channels.tls import MutualTls
from channels.x509 import Authority, request
from secsplit.errors import RunError
from secsplit.rundir import write_atomically

FILE = "channel-audit.json"
MESSAGES = [(b"meta %d" % n, bytes([n]) * 3000) for n in range(4)]
IN_HANDSHAKE, IN_RECORDS = 40, 4000  # byte of its direction at which a fault is committed
SECONDS = 2.0  # after which silence counts as an end
AT_ONCE = 12  # trials
SUITES = (*ENROLLED, IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL)
TLS = "TLS 1.3, mutual X.509"

Outcome = Literal["refused", "delivered unchanged", "DELIVERED CHANGED"]


class Trial(Frozen):
    """One fault on one channel. delivered: how many of the messages arrived, unchanged and in order; connections: more
    than one where the faulted one was refused and the dialler dialled anew."""

    suite: str
    fault: Kind
    direction: Direction
    at: int
    during: Literal["handshake", "records"]
    outcome: Outcome
    delivered: int
    connections: int

    @property
    def sound(self) -> bool:
        return self.outcome != "DELIVERED CHANGED"


@dataclass(frozen=True)
class Ends:
    """Two parties, and the handshake by which each meets the other."""

    ann: Identity
    ben: Identity
    roster: Roster
    near: Handshake
    far: Handshake


def every_channel() -> dict[str, Ends]:
    """Every channel of the project between two fresh parties, by the name of its suite; the default first."""
    ann, ben = Identity.generate("ann"), Identity.generate("ben")
    roster = Roster.of([ann.public, ben.public], epoch=1, signer=ann)
    authority = Authority.new("authority")
    near, far = (MutualTls(authority.sign(request(who)), authority.pem) for who in (ann, ben))
    noise = {suite.name: NoiseIK((suite,)) for suite in SUITES}
    return {
        **{name: Ends(ann, ben, roster, each, each) for name, each in noise.items()},
        TLS: Ends(ann, ben, roster, near, far),
    }


def faults() -> Iterator[Fault]:
    """Every kind, from the dialler, in the handshake and in the records; and a flip on the way back."""
    for kind in get_args(Kind):
        yield Fault(kind, IN_HANDSHAKE, length=8, data=bytes(8), seconds=0.1)
        yield Fault(kind, IN_RECORDS, length=8, data=bytes(8), seconds=0.1)
    yield Fault("flip", IN_HANDSHAKE, "back")


def audit_channel(ends: Mapping[str, Ends] | None = None) -> tuple[Trial, ...]:
    """Every fault on every channel, or on those given; several at once, for a trial is mostly waiting."""
    plan = [
        (name, each, fault) for name, each in (every_channel() if ends is None else ends).items() for fault in faults()
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(lambda job: _trial(*job), plan))


def _trial(suite: str, ends: Ends, fault: Fault) -> Trial:
    listener = Listener("127.0.0.1:0", ends.ben, ends.roster, digest=bytes(32), handshake=ends.far, stall=SECONDS)
    with listener as host, Tap(host.address) as tap:
        tap.fault = fault
        arrived = delivered(tap, host, ends)
        connections = len(tap.recordings)
    whole = arrived == MESSAGES[: len(arrived)]
    unchanged = whole and len(arrived) == len(MESSAGES) and connections < 2
    return Trial(
        suite=suite,
        fault=fault.kind,
        direction=fault.direction,
        at=fault.at,
        during="handshake" if fault.at == IN_HANDSHAKE else "records",
        outcome="delivered unchanged" if unchanged else "refused" if whole else "DELIVERED CHANGED",
        delivered=len(arrived) if whole else 0,
        connections=connections,
    )


def delivered(tap: Tap, host: Listener, ends: Ends) -> list[tuple[bytes, bytes]]:
    """Send all messages through the tap; what arrived before the channel ended."""

    def send() -> None:
        with contextlib.suppress(ChannelError):
            near = connect(
                tap.address, ends.ann, ends.roster, "ben", digest=bytes(32), handshake=ends.near, timeout=SECONDS,
                stall=SECONDS,
            )  # fmt: skip
            with near:
                for meta, payload in MESSAGES:
                    near.send(meta, payload)

    arrived: list[tuple[bytes, bytes]] = []
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with contextlib.suppress(ChannelError, PeerClosed), host.accept(2 * SECONDS) as far:
        while True:
            frame = far.recv(SECONDS)
            arrived.append((frame.meta, bytes(frame.payload)))
    thread.join(5 * SECONDS)
    return arrived


_trials_of = TypeAdapter(tuple[Trial, ...])


def save(trials: Sequence[Trial], folder: Path) -> Path:
    """Write the trials to the run's folder."""
    write_atomically(folder / FILE, _trials_of.dump_json(tuple(trials), indent=1))
    return folder / FILE


def load(folder: Path) -> tuple[Trial, ...]:
    """The trials that lie in a run's folder; none where none were made. Raises RunError where they cannot be read."""
    path = folder / FILE
    if not path.exists():
        return ()
    try:
        return _trials_of.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: not a channel audit: {error.errors()[0]['msg']}") from None
