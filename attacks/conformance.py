"""What every attack must keep to, ours and others': `check_attack`, for the tests of any package that brings one.

An attack gives the same guess for the same coins; gives it from its view alone, whatever other parties' tensors hold;
needs what it says it needs; leaves its view as it found it; and neither draws from torch's global generator nor seeds
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from attacks.base import Attack, Guess, NotApplicable
from secsplit.message import Kind
from secsplit.threat import Known, Knows, View
from secsplit.transcript import Transcript

GRANTS: Mapping[Knows, tuple[str, object]] = {
    Knows.AUX: ("aux", None),
    Knows.CLUES: ("clues", None),
    Knows.PAIRS: ("pairs", None),
    Knows.CANDIDATES: ("candidates", None),
    Knows.PRIOR: ("prior", {}),
    Knows.QUERY: ("query", {}),
    Knows.ARCHITECTURE: ("architecture", {}),
    Knows.WEIGHTS: ("weights", {}),
}

MakeView = Callable[[bool], View]


def check_attack(attack: Attack, make_view: MakeView, *, seed: int = 0) -> Guess:
    """Raises AssertionError, saying what, where the attack breaks the contract; its guess where it keeps it.

    make_view: called with False for a view on which the attack applies, and with True for the same view where every
    tensor of parties outside the coalition (messages between them, models, records, labels not granted) is poisoned.
    """
    view = make_view(False)
    before, state = list(_tensors(view)), torch.get_rng_state()
    guess = _infer(attack, view, seed)
    if not torch.equal(state, torch.get_rng_state()):
        raise AssertionError(f"{attack.name} used torch's global random numbers; draw from `coins`")
    if not all(_same(a, b) for a, b in zip(before, _tensors(view), strict=True)):
        raise AssertionError(f"{attack.name} changed a tensor of its view; work on a copy")
    if guess.goal != attack.goal:
        raise AssertionError(f"{attack.name} declares goal {attack.goal!r} and guesses about {guess.goal!r}")
    if not _equal(guess, _infer(attack, view, seed)):
        raise AssertionError(f"{attack.name} guesses otherwise with the same view and the same coins")
    if not _equal(guess, _infer(attack, make_view(True), seed)):
        raise AssertionError(
            f"{attack.name} changes its guess when other parties' tensors do: it looks outside its view"
        )
    for known in attack.needs.knows:
        _refuses(attack, without(view, known), seed, f"knowledge {str(known)!r}")
    if attack.needs.messages or attack.needs.any_of:
        _refuses(attack, silent(view), seed, "any message")
    return guess


def without(view: View, known: Knows) -> View:
    """The view less one grant."""
    name, nothing = GRANTS[known]
    view = replace(view, history={}) if known is Knows.WEIGHTS else view
    return replace(view, **{name: nothing})  # type: ignore[arg-type]


def silent(view: View) -> View:
    """The view of parties that saw no message but control."""
    kept = {
        party: Transcript.of(party, [record for record in transcript if record.kind is Kind.CONTROL])
        for party, transcript in view.transcripts.items()
    }
    return replace(view, transcripts=kept)


def _refuses(attack: Attack, view: View, seed: int, what: str) -> None:
    try:
        _infer(attack, view, seed)
    except NotApplicable:
        return
    raise AssertionError(f"{attack.name} declares that it needs {what}, and guesses without; raise NotApplicable")


def _infer(attack: Attack, view: View, seed: int) -> Guess:
    return attack.infer(view, coins=torch.Generator().manual_seed(seed))


def _tensors(view: View) -> Iterator[Tensor]:
    """Copies of all that an attack could change in place."""
    for transcript in view.transcripts.values():
        for record in transcript:
            yield from (tensor.clone() for tensor in record.tensors.values())
    for known in (view.aux, view.clues, view.pairs, *view.own.values()):
        if isinstance(known, Known):
            yield from (t.clone() for t in (*known.inputs.values(), *known.labels.values(), known.cast, known.position))
    for snapshots in view.models.values():
        for snapshot in snapshots:
            yield from (tensor.clone() for tensor in snapshot.make().state_dict().values())
    yield from (tensor.clone() for tensor in view.prior.values())


def _equal(a: Guess, b: Guess) -> bool:
    for field in fields(Guess):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            if not _same(left, right):
                return False
        elif left != right:
            return False
    return True


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
