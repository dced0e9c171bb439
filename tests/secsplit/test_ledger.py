"""The ledger never undercounts: not over a crash, a resume or a resend, and not by its sums."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from secsplit.accounting import INPUTS, LABELS, Charge, Protects, Release, compose, epsilon_of, gaussian_mu, unbounded
from secsplit.claims import EVERYONE
from secsplit.errors import BudgetSpent, LedgerDamaged, NoiseRedrawn, RunError
from secsplit.journal import anchor_of
from secsplit.ledger import BudgetSpec, Ledger, Spent
from secsplit.message import Kind, Message, Stamp

ROWS = torch.arange(4)
Open = Callable[..., Ledger]


def message(value: float = 0.0) -> Message:
    return Message(Kind.SMASHED, "bottom->top", Stamp(), {"h": torch.full((4, 3), value)})


def release(
    key: str, mu: float, *, rows: torch.Tensor = ROWS, protects: Protects = INPUTS, **options: object
) -> Release:
    return Release(key, rows, charges=(Charge(protects, "gaussian", mu=mu, **options),))  # type: ignore[arg-type]


def total(ledger: Ledger, protects: Protects = INPUTS, to: str = EVERYONE) -> Spent:
    return next(s for s in ledger.spent() if s.protects == protects and s.to == to)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def make(**options: object) -> Ledger:
        chosen: dict[str, object] = {"party": "client", "run": "run-1", **options}
        return Ledger(tmp_path / "ledger.jsonl", **chosen)  # type: ignore[arg-type]

    return make


def test_epsilon_is_the_closed_form(opened: Open) -> None:
    """Ten releases at sigma = 4: epsilon 7.51 at delta 1e-5, to one server, and through the disk."""
    with opened() as ledger:
        for step in range(10):
            assert ledger.charge(release(f"{step}", gaussian_mu(4.0)), message(step), "server")
    with opened() as ledger:
        spent = total(ledger)
        assert spent.epsilon == pytest.approx(7.5113, abs=1e-3)
        assert spent.epsilon == epsilon_of(compose([0.5] * 10), 1e-5)
        assert (spent.adjacency, spent.unit, spent.records, spent.mechanisms) == (
            "replace-one",
            "record",
            4,
            ("gaussian",),
        )
        assert "participation visible" in spent.statement


def test_a_resend_is_free_and_a_redraw_is_refused(opened: Open) -> None:
    with opened() as ledger:
        assert ledger.charge(release("a", 0.5), message(1), "server")
        assert not ledger.charge(release("a", 0.5), message(1), "server")
        with pytest.raises(NoiseRedrawn, match="never redrawn"):
            ledger.charge(release("a", 0.5), message(2), "server")
    with opened() as ledger:  # after a crash
        assert not ledger.charge(release("a", 0.5), message(1), "server")
        with pytest.raises(NoiseRedrawn):
            ledger.charge(release("a", 0.5), message(2), "server")
        assert total(ledger).mu == pytest.approx(0.5)
    with opened(run="run-2") as ledger:  # another noise key draws anew, and is charged anew
        assert ledger.charge(release("a", 0.5), message(2), "server")
        assert total(ledger).mu == pytest.approx(math.sqrt(0.5))


def test_receivers_are_summed_alone_and_together(opened: Open) -> None:
    with opened() as ledger:
        ledger.charge(release("a", 3.0), message(), "one")
        ledger.charge(release("b", 4.0), message(), "two")
        assert [total(ledger, to=to).mu for to in ("one", "two", EVERYONE)] == [3, 4, 5]


def test_updates_are_seen_by_every_receiver(opened: Open) -> None:
    update = Release("update|1", ROWS, charges=(Charge(INPUTS, "dp-sgd", mu=4.0), Charge(LABELS, "dp-sgd", mu=4.0)))
    with opened() as ledger:
        ledger.charge(
            Release("a", ROWS, charges=(Charge(INPUTS, "gaussian", mu=3.0),), updates=(update,)), message(), "one"
        )
        ledger.charge(release("b", 1.0), message(), "two")
        assert total(ledger, to="one").mu == pytest.approx(5)
        assert total(ledger, to="two").mu == pytest.approx(math.sqrt(17))
        assert total(ledger).mu == pytest.approx(math.sqrt(26))
        assert total(ledger, LABELS).mu == pytest.approx(4)
        assert total(ledger).given_weights == epsilon_of(math.sqrt(10), 1e-5)


def test_without_dp_sgd_there_is_no_finite_epsilon(opened: Open) -> None:
    update = Release("u", ROWS, charges=(unbounded(INPUTS, "none", "bottom learns from these records without DP-SGD"),))
    with opened() as ledger:
        ledger.charge(
            Release("a", ROWS, charges=(Charge(INPUTS, "gaussian", mu=1.0),), updates=(update,)), message(), "s"
        )
        spent = total(ledger)
        assert spent.epsilon is None
        assert spent.given_weights == epsilon_of(1.0, 1e-5)
        assert "no finite epsilon" in spent.statement
        assert "without DP-SGD" in spent.statement


def test_unbounded_charges_are_written_once_a_record(opened: Open) -> None:
    nothing = (unbounded(INPUTS, "none", "nothing bounds it"),)
    with opened() as ledger:
        written = [
            ledger.charge(Release(f"{i}", torch.tensor([0, i % 2]), charges=nothing), message(i), "s") for i in range(9)
        ]
        assert written == [True, True] + [False] * 7
        assert ledger.head.lines == 3


def test_label_noise_drawn_once_is_charged_once(opened: Open) -> None:
    response = Charge(LABELS, "randomised response", epsilon=2.0, once="label-dp|y")
    update = Release("u", ROWS, charges=(response,))
    with opened() as ledger:
        for epoch in range(5):
            ledger.charge(Release(f"{epoch}", ROWS, charges=(response,), updates=(update,)), message(epoch), "server")
        ledger.charge(Release("other", torch.tensor([9]), charges=(response,)), message(), "server")
        spent = total(ledger, LABELS)
        assert (spent.pure, spent.mu, spent.epsilon, spent.records) == (2.0, 0.0, 2.0, 5)


def test_units_own_several_records(opened: Open) -> None:
    """Three records of one patient: messages add up as root k, one update of the weights as k."""
    patients = torch.tensor([0, 0, 0, 1])
    update = Release("u", ROWS, charges=(Charge(INPUTS, "dp-sgd", mu=1.0),))
    with opened(units={(0, True): patients}, budget=BudgetSpec(unit="patient")) as ledger:
        ledger.charge(
            Release("a", ROWS, charges=(Charge(INPUTS, "gaussian", mu=1.0),), updates=(update,)), message(), "s"
        )
        assert total(ledger).mu == pytest.approx(math.sqrt(3 + 9))
        assert total(ledger).records == 2


def test_stops_hard_at_its_own_budget(opened: Open) -> None:
    budget = BudgetSpec(epsilon=7.6, delta=1e-5)
    with opened(budget=budget) as ledger:
        for step in range(10):
            ledger.charge(release(f"{step}", 0.5), message(step), "server")
        head = ledger.head
        with pytest.raises(BudgetSpent, match=r"epsilon 7\.955.*budget is 7\.6"):
            ledger.charge(release("10", 0.5), message(10), "server")
        assert ledger.head == head
        assert not ledger.charge(release("3", 0.5), message(3), "server")  # a resend still leaves
        assert ledger.charge(release("new", 0.5, rows=torch.tensor([7])), message(), "server")  # a fresh record too
    with opened(budget=budget) as ledger, pytest.raises(BudgetSpent):
        ledger.charge(release("10", 0.5), message(10), "other")


def test_a_budget_refuses_what_has_no_bound(opened: Open) -> None:
    with (
        opened(budget=BudgetSpec(epsilon=8.0)) as ledger,
        pytest.raises(BudgetSpent, match=r"no finite epsilon.*frozen"),
    ):
        ledger.charge(Release("a", ROWS, charges=(unbounded(INPUTS, "none", "it learns"),)), message(), "server")


def test_label_budget_counts_labels(opened: Open) -> None:
    response = Charge(LABELS, "randomised response", epsilon=2.0, once="label-dp|y")
    with opened(budget=BudgetSpec(label_epsilon=1.9)) as ledger:
        ledger.charge(release("a", 50.0), message(), "server")
        with pytest.raises(BudgetSpent, match="labels of a record"):
            ledger.charge(Release("b", ROWS, charges=(response,)), message(), "server")
    with opened(budget=BudgetSpec(label_epsilon=2.0)) as ledger:
        assert ledger.charge(Release("b", ROWS, charges=(response,)), message(), "server")


@pytest.mark.parametrize(("n", "delta"), [(1000, 1e-3), (10, 0.5)])
def test_delta_of_one_over_n_is_refused(opened: Open, n: int, delta: float) -> None:
    with pytest.raises(RunError, match="1/n"):
        opened(budget=BudgetSpec(delta=delta), records={(0, True): n})
    opened(records={(0, True): n}).close()


def test_one_adjacency_everywhere(opened: Open) -> None:
    with opened() as ledger, pytest.raises(RunError, match="one adjacency"):
        ledger.charge(release("a", 0.5, adjacency="zero-out"), message(), "server")


def test_another_partys_ledger_is_refused(opened: Open) -> None:
    opened().close()
    with pytest.raises(RunError, match="it is the ledger of"):
        opened(party="other")


def test_edited_or_rolled_back_ledgers_are_refused(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with opened() as ledger:
        ledger.charge(release("a", 0.5), message(), "server")
    old = path.read_bytes()
    with opened() as ledger:
        ledger.charge(release("b", 0.5), message(), "server")
        head = ledger.head
    new = path.read_bytes()
    for content in (old, new.replace(b'"mu":0.5', b'"mu":0.1'), new[:-1]):
        path.write_bytes(content)
        with pytest.raises(LedgerDamaged, match="nothing sent"):
            opened()
    path.write_bytes(old)
    anchor_of(path).unlink()
    anchor_of(path).touch()
    path.write_bytes(new)
    with pytest.raises(LedgerDamaged, match="no head"):
        opened()
    anchor_of(path).write_text(str(head))
    with opened() as ledger:
        ledger.follows(head)
        with pytest.raises(LedgerDamaged, match="does not continue"):
            ledger.follows(type(head)(head.lines + 1, head.link))


def test_lines_that_are_no_charges_are_refused(opened: Open, tmp_path: Path) -> None:
    from secsplit.journal import Journal

    opened().close()
    with Journal(tmp_path / "ledger.jsonl") as journal:
        journal.append(b'{"type": "release", "mu": -1}')
    with pytest.raises(LedgerDamaged, match="not a ledger line"):
        opened()


class AnyFaults(RuleBasedStateMachine):
    """Sends, resends, crashes at any byte, resumes and lost noise keys, in any order; against a naive sum.

    What is on the wire is what `charge` let pass. The naive model sums mu squared over the different byte strings seen
    on the wire, record by record; the ledger may say more (a crash after the flush), never less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.jsonl"
        self.run_name, self.step = 0, 0
        self.wire: dict[tuple[int, int], tuple[float, list[int], str]] = {}  # (run, step) -> mu, rows, receiver
        self.ledger = self.open()

    def open(self) -> Ledger:
        return Ledger(self.path, party="c", run=f"run-{self.run_name}", budget=BudgetSpec(epsilon=30.0))

    def bytes_of(self, run: int, step: int) -> Message:
        return message(1000 * run + step)  # noise by name: a run and a step always give the same bytes

    def offer(self, step: int, mu: float, rows: list[int], to: str) -> None:
        before = self.path.stat().st_size
        try:
            self.ledger.charge(release(f"{step}", mu, rows=torch.tensor(rows)), self.bytes_of(self.run_name, step), to)
        except BudgetSpent:
            assert self.path.stat().st_size == before
            return
        self.wire.setdefault((self.run_name, step), (mu, rows, to))

    @rule(mu=st.floats(0.1, 2.0), rows=st.lists(st.integers(0, 5), min_size=1, unique=True), to=st.sampled_from("ab"))
    def send(self, mu: float, rows: list[int], to: str) -> None:
        self.step += 1
        self.offer(self.step, mu, rows, to)

    @precondition(lambda self: any(run == self.run_name for run, _ in self.wire))
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([s for r, s in self.wire if r == self.run_name]))
        mu, rows, to = self.wire[self.run_name, step]
        lines = self.ledger.head.lines
        self.offer(step, mu, rows, to)
        assert self.ledger.head.lines == lines

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def redraw(self, data: st.DataObject) -> None:
        run, step = data.draw(st.sampled_from(sorted(self.wire)))
        if run == self.run_name:
            mu, rows, to = self.wire[run, step]
            with pytest.raises(NoiseRedrawn):
                self.ledger.charge(release(f"{step}", mu, rows=torch.tensor(rows)), message(-1.0), to)

    @rule(torn=st.binary(max_size=40).filter(lambda torn: b"\n" not in torn))
    def crash_while_writing(self, torn: bytes) -> None:
        self.ledger.close()
        with self.path.open("ab") as file:
            file.write(torn)
        self.ledger = self.open()

    @rule()
    def crash_before_sending(self) -> None:
        """Charged and flushed, and the message never left; resumed, the same step is offered again."""
        self.step += 1
        try:
            self.ledger.charge(release(f"{self.step}", 0.7), self.bytes_of(self.run_name, self.step), "a")
        except BudgetSpent:
            return
        self.ledger.close()
        self.ledger = self.open()
        self.offer(self.step, 0.7, ROWS.tolist(), "a")

    @rule()
    def lose_the_noise_key(self) -> None:
        self.ledger.close()
        self.run_name += 1
        self.ledger = self.open()

    @invariant()
    def never_undercounts(self) -> None:
        sums = np.zeros(6)
        for mu, rows, _ in self.wire.values():
            sums[rows] += mu * mu
        spent = [s for s in self.ledger.spent() if s.to == EVERYONE]
        assert math.sqrt(sums.max()) <= (spent[0].mu if spent else 0.0) + 1e-9
        assert not spent or (spent[0].epsilon is not None and spent[0].epsilon <= 30.0 * (1 + 1e-8))

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


TestAnyFaults = AnyFaults.TestCase
TestAnyFaults.settings = settings(max_examples=20, stateful_step_count=30, deadline=None, derandomize=True)
