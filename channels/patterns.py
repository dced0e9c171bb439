"""Handshake patterns as data (Noise revision 34, sections 7 and 9, appendix; hybrid forward secrecy extension).

A row reads: the initiator's key known beforehand, the responder's, then the messages, turn by turn, initiator first.
Modifiers are applied by rule: `pskN` puts a token before the first message (N = 0) or after the Nth; `hfs` puts `e1`
after the first `e` and `ekem1` after the first `ee`, so that a KEM's secret joins the Diffie-Hellman ones.
This file knows no key and no byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TABLE = """
N     -  s   e es
K     s  s   e es ss
X     -  s   e es s ss

NN    -  -   e                / e ee
KN    s  -   e                / e ee se
NK    -  s   e es             / e ee
KK    s  s   e es ss          / e ee se
NX    -  -   e                / e ee s es
KX    s  -   e                / e ee se s es
XN    -  -   e                / e ee            / s se
IN    -  -   e s              / e ee se
XK    -  s   e es             / e ee            / s se
IK    -  s   e es s ss        / e ee se
XX    -  -   e                / e ee s es       / s se
IX    -  -   e s              / e ee se s es

NK1   -  s   e                / e ee es
NX1   -  -   e                / e ee s          / es
X1N   -  -   e                / e ee            / s             / se
X1K   -  s   e es             / e ee            / s             / se
XK1   -  s   e                / e ee es         / s se
X1K1  -  s   e                / e ee es         / s             / se
X1X   -  -   e                / e ee s es       / s             / se
XX1   -  -   e                / e ee s          / es s se
X1X1  -  -   e                / e ee s          / es s          / se
K1N   s  -   e                / e ee            / se
K1K   s  s   e es             / e ee            / se
KK1   s  s   e                / e ee se es
K1K1  s  s   e                / e ee es         / se
K1X   s  -   e                / e ee s es       / se
KX1   s  -   e                / e ee se s       / es
K1X1  s  -   e                / e ee s          / se es
I1N   -  -   e s              / e ee            / se
I1K   -  s   e es s           / e ee            / se
IK1   -  s   e s              / e ee se es
I1K1  -  s   e s              / e ee es         / se
I1X   -  -   e s              / e ee s es       / se
IX1   -  -   e s              / e ee se s       / es
I1X1  -  -   e s              / e ee s          / se es
"""

Message = tuple[str, ...]


@dataclass(frozen=True)
class Pattern:
    """A handshake: who knows whose static key before it starts, and the tokens of each message in turn."""

    name: str
    initiator_known: bool
    responder_known: bool
    messages: tuple[Message, ...]

    @property
    def psks(self) -> int:
        """How many pre-shared keys it takes."""
        return sum(message.count("psk") for message in self.messages)

    @property
    def one_way(self) -> bool:
        """Only the initiator ever sends."""
        return len(self.messages) == 1


def _row(line: str) -> Pattern:
    name, initiator, responder, messages = line.split(maxsplit=3)
    turns = tuple(tuple(turn.split()) for turn in messages.split("/"))
    return Pattern(name, initiator == "s", responder == "s", turns)


PATTERNS = {row.name: row for row in map(_row, filter(None, _TABLE.splitlines()))}


def parse(name: str) -> Pattern:
    """The pattern a protocol name spells, modifiers applied, such as `XXhfs+psk3`; raises ValueError on any other."""
    found = re.fullmatch(r"([NKXI]1?[NKX]1?|[NKX])((?:[a-z][a-z0-9]*)(?:\+[a-z][a-z0-9]*)*)?", name)
    if found is None or found[1] not in PATTERNS:
        raise ValueError(f"unknown handshake pattern {name!r}; expected one of {', '.join(PATTERNS)} with modifiers")
    base = PATTERNS[found[1]]
    turns = [list(turn) for turn in base.messages]
    for modifier in found[2].split("+") if found[2] else []:
        if modifier == "hfs":
            _hybrid(turns)
        elif (psk := re.fullmatch(r"psk(\d)", modifier)) and int(psk[1]) <= len(turns):
            _pre_shared(turns, int(psk[1]))
        else:
            raise ValueError(f"unknown modifier {modifier!r} in {name!r}; expected hfs or psk0..psk{len(turns)}")
    return Pattern(name, base.initiator_known, base.responder_known, tuple(map(tuple, turns)))


def _hybrid(turns: list[list[str]]) -> None:
    """Insert the KEM's tokens; the KEM public key follows the first `e` whatever comes after it."""
    for token, follower in (("e", "e1"), ("ee", "ekem1")):
        turn = next((turn for turn in turns if token in turn), None)
        if turn is None:
            raise ValueError("hfs needs a pattern with two ephemeral keys")
        turn.insert(turn.index(token) + 1, follower)


def _pre_shared(turns: list[list[str]], position: int) -> None:
    if position == 0:
        turns[0].insert(0, "psk")
    else:
        turns[position - 1].append("psk")
