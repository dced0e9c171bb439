"""What the report says in plain words: what a message is, what an adversary may know, what each term means.

Text that a controller must write (purpose, necessity, sign-off) is asked for here and never filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from secsplit.message import Kind
from secsplit.threat import Knows

MESSAGES: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        Kind.SMASHED: ("Smashed data", "what the sender's layers made of each record; may allow rebuilding the record"),
        Kind.CUT_GRAD: ("Cut gradient", "how each record's smashed data should change; may reveal the record's label"),
        Kind.OUTPUT: ("Output", "the network's answer for each record"),
        Kind.OUTPUT_GRAD: ("Output gradient", "how each answer should change; reveals labels where they are few"),
        Kind.LABELS: ("Labels", "the true answer for each record, readable by the receiver"),
        Kind.WEIGHTS: ("Weights", "a part of the network itself"),
        Kind.CONTROL: ("Control", "record counts and progress; no record's data"),
    }
)

KNOWLEDGE: Mapping[str, str] = MappingProxyType(
    {
        Knows.AUX: "has records of the same kind, of other people, with labels",
        Knows.CLUES: "knows the true label of a few training records of each class",
        Knows.PRIOR: "knows how common each class is",
        Knows.QUERY: "may run the other side's layers on inputs of its own choice",
        Knows.ARCHITECTURE: "knows how the other side's layers are built, not their weights",
        Knows.WEIGHTS: "knows the other side's weights",
        Knows.CANDIDATES: "has records of which some were trained on, and asks which",
        Knows.PAIRS: "knows a few training records in full",
    }
)

BEHAVIOURS: Mapping[str, str] = MappingProxyType(
    {
        "curious": "follows the protocol, keeps everything it receives, and tries to learn more from it",
        "malicious": "departs from the protocol to learn more",
        "wiretap": "takes no part and sees only encrypted traffic on the network",
    }
)

PURPOSE: tuple[tuple[str, str, str], ...] = (
    ("purpose", "What is the processing for, and what is the legitimate interest pursued?", "GDPR Art. 35(7)(a)"),
    ("necessity", "Why is it necessary, and proportionate to the purpose?", "GDPR Art. 35(7)(b)"),
    ("basis", "On what legal basis does each site take part?", "GDPR Art. 6 and 9"),
    ("subjects", "Whose data is it, and how were they informed?", "GDPR Art. 13 and 14"),
    ("retention", "How long are messages, weights and this audit kept?", "GDPR Art. 5(1)(e)"),
)

SIGN_OFF: tuple[tuple[str, str, str], ...] = (
    ("controller", "Controller: name, role, date", "sign-off"),
    ("officer", "Data protection officer: advice, name, date", "GDPR Art. 35(2)"),
    ("decision", "Decision: accept, accept with conditions, or stop", "GDPR Art. 35(7)(d)"),
    ("valid-until", "Valid until", "ISO/IEC 27559 clause 8"),
)

TRIGGERS: tuple[str, ...] = (
    "a party, its role, or who colludes with whom changes",
    "the network, the cut, the method, a defense or its strength changes",
    "training goes on, or is repeated on the same records",
    "new records, sites, or a new use of the trained network",
    "a stronger attack is published, or an attack here that was not applicable becomes so",
)

NOT_COVERED: tuple[str, ...] = (
    "that a record took part at all, and in which batches",
    "whatever the same people's records are used for elsewhere",
    "labels, where only inputs are named, and inputs, where only labels are named",
    "choices made by looking at the data: hyper-parameters, early stopping, this audit itself",
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Accuracy", "The share of records for which an answer is right."),
    (
        "Adversary",
        "Whoever tries to learn what it should not: here mostly a party that takes part honestly but is curious.",
    ),
    ("AUC", "How well a score ranks records of one class above the others: 0.5 is guessing, 1 is perfect."),
    ("Auxiliary records", "Records of the same kind, of other people, that an adversary may own or find."),
    ("Baseline", "What is reached without the messages; a leak is only what goes beyond it."),
    ("Chance", "What somebody reaches who sees nothing of the messages."),
    ("Clue", "One training record whose true label the adversary happens to know."),
    ("Cut", "The place where the network is divided between two parties."),
    ("Cut gradient", "The message that goes back over the cut and tells the sender how to improve."),
    ("Differential privacy", "A mathematical bound, epsilon, on how much any observer can learn about one record."),
    ("Epsilon", "The bound of differential privacy: the smaller, the less can be learnt. Large values promise little."),
    ("Fingerprint", "A short form of a party's public key; compare it by telephone to know who is at the other end."),
    ("Interval", "The range in which the true figure lies with 95% confidence, given how few records were looked at."),
    ("Leakage", "How much better than chance an attack does."),
    ("n", "How many records, batches or images a figure rests on."),
    ("p-value", "How often a figure this large would appear if nothing were leaking. Small means: hardly ever."),
    ("Re-identification", "Finding, by a rebuilt record, the very person it came from among many."),
    ("Smashed data", "What the first layers of the network make of a record; this crosses the cut."),
    ("Split learning", "Training one network whose layers lie at different parties, so that no raw record is sent."),
    ("SSIM", "How alike the structures of two images are: 0 is unlike, 1 is the same image."),
    ("Threat", "One adversary: who it is, how it behaves, and what else it knows."),
    ("Transcript", "Everything one party sent and received, in order."),
)
