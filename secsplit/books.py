"""Each party's noise key and ledger, opened for a run and closed with what was spent written beside them.

DIR/parties/NAME/noise.key        0600; whoever reads it can remove the noise
DIR/parties/NAME/ledger.jsonl     the journal, unless the party's budget names a file that outlives the run
DIR/parties/NAME/privacy.json     what was spent, in words and numbers
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from secsplit.accounting import Release
from secsplit.assemble import modules_of, party_of
from secsplit.defenses import Noise
from secsplit.errors import EnvironmentFault, LedgerDamaged
from secsplit.journal import Head
from secsplit.ledger import BudgetSpec, Ledger
from secsplit.party import Party
from secsplit.run import Run
from secsplit.rundir import PartyDir, RunDir, write_atomically
from secsplit.schedule import SPLITS
from secsplit.steps import Send

KEY, LEDGER, SPENT = "noise.key", "ledger.jsonl", "privacy.json"


@dataclass(frozen=True)
class Books:
    """The parties of this process and their ledgers; called with each send that has a release, before it leaves.

    What it returns must be called, and have returned, before the bytes leave: the charge is on the disk then.
    """

    parties: Mapping[str, Party]
    ledgers: Mapping[str, Ledger]

    def __call__(self, party: Party, send: Send) -> Callable[[], None]:
        assert isinstance(send.release, Release)
        ledger = self.ledgers[party.name]
        ledger.charge(send.release, send.message, send.to, settle=False)
        return ledger.settle


@contextmanager
def opened(run: Run, folder: RunDir, names: Iterable[str]) -> Iterator[Books]:
    """The parties of those names with their ledgers, locked for the length of the context."""
    names = list(names)
    modules = modules_of(run) if len(names) > 1 else None
    with ExitStack() as stack:
        parties: dict[str, Party] = {}
        ledgers: dict[str, Ledger] = {}
        for name in names:
            mine = folder.party(name)
            mine.path.mkdir(parents=True, exist_ok=True)
            noise = Noise.kept(mine.path / KEY)
            party = parties[name] = party_of(run, name, modules, noise=noise, accounted=True)
            ledgers[name] = stack.enter_context(_ledger(mine, party, noise, run.file.parties[name].budget))
            _continues(mine, ledgers[name])
            stack.callback(_tell, mine, ledgers[name])
        yield Books(parties, ledgers)


def _ledger(folder: PartyDir, party: Party, noise: Noise, budget: BudgetSpec) -> Ledger:
    records = {
        (cast, split == "train"): size
        for cast, shard in party.shards.items()
        for split in SPLITS
        if (size := shard.size(split))
    }
    path = Path(budget.ledger).expanduser() if budget.ledger else folder.path / LEDGER
    return Ledger(path, party=party.name, run=noise.fingerprint, budget=budget, records=records)


def _continues(folder: PartyDir, ledger: Ledger) -> None:
    """Raises LedgerDamaged unless the ledger is the one that an earlier run of this folder left, head and all.

    The head kept beside a ledger goes with it where both are deleted or restored together; this one stays.
    """
    path = folder.path / SPENT
    if not path.exists():
        return
    try:
        ledger.follows(Head(**json.loads(path.read_bytes())["head"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerDamaged(f"{path}: not what a ledger leaves: {error}; nothing sent") from None


def _tell(folder: PartyDir, ledger: Ledger) -> None:
    with suppress(EnvironmentFault):  # the head told is of what is on the disk, and the sums are of all
        ledger.settle()
    value = {
        "head": asdict(ledger.head),
        "budget": ledger.budget.model_dump(mode="json", exclude={"ledger"}),
        "spent": [{**asdict(spent), "statement": spent.statement} for spent in ledger.spent()],
    }
    write_atomically(folder.path / SPENT, json.dumps(value, indent=1, default=str).encode())
