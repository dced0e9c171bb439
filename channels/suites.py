"""The cryptographic suites this release speaks, as a table, and the rule that nothing is ever negotiated down.

The initiator names one suite and lists all it would have taken; the list is in the prologue, so changing it breaks
the handshake. The responder takes the named suite or nothing, and refuses it too where a stronger one was possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from channels.errors import SuiteRefused
from channels.noise import Protocol


@dataclass(frozen=True)
class Suite:
    """A Noise protocol under its one-byte number; a larger strength is never given up for a smaller one."""

    number: int
    protocol: Protocol
    strength: int  # 2 hybrid post-quantum, 1 classical

    @property
    def name(self) -> str:
        """The Noise protocol name."""
        return self.protocol.name


def _suite(number: int, name: str, strength: int) -> Suite:
    return Suite(number, Protocol.of(name), strength)


IKHFS_AESGCM = _suite(1, "Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256", 2)
IKHFS_CHACHA = _suite(2, "Noise_IKhfs_25519+MLKEM768_ChaChaPoly_SHA256", 2)
IK_AESGCM_CLASSICAL = _suite(3, "Noise_IK_25519_AESGCM_SHA256", 1)
IK_CHACHA_CLASSICAL = _suite(4, "Noise_IK_25519_ChaChaPoly_SHA256", 1)
XXHFS = _suite(5, "Noise_XXhfs_25519+MLKEM768_AESGCM_SHA256", 2)
XXHFS_INVITE = _suite(6, "Noise_XXhfs+psk3_25519+MLKEM768_AESGCM_SHA256", 2)

SUITES = {
    suite.number: suite
    for suite in (IKHFS_AESGCM, IKHFS_CHACHA, IK_AESGCM_CLASSICAL, IK_CHACHA_CLASSICAL, XXHFS, XXHFS_INVITE)
}
ENROLLED = (IKHFS_AESGCM, IKHFS_CHACHA)  # the default policy between parties of one roster, preferred first


def offer(suites: Iterable[Suite]) -> int:
    """A bit mask of suite numbers."""
    return sum(1 << suite.number for suite in suites)


def accept(number: int, offered: int, allowed: Iterable[Suite]) -> Suite:
    """The suite named; raises SuiteRefused where it is not allowed, was not offered, or a stronger one was."""
    ours = list(allowed)
    chosen = next((suite for suite in ours if suite.number == number), None)
    if chosen is None:
        name = SUITES[number].name if number in SUITES else f"number {number}"
        raise SuiteRefused(f"offered {name}; allowed here: {', '.join(suite.name for suite in ours)}")
    common = [suite for suite in ours if offered >> suite.number & 1]
    if chosen not in common or any(suite.strength > chosen.strength for suite in common):
        raise SuiteRefused(f"{chosen.name} chosen, although both sides can do better")
    return chosen
