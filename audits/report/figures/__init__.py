"""The drawings of the page. Each takes Values of the report's JSON, and the page prints the same numbers in a table."""

from audits.report.figures.cost import timeline
from audits.report.figures.leakage import heat, over_training, parts, roc, scores
from audits.report.figures.privacy import epsilon
from audits.report.figures.scope import topology
from audits.report.figures.sweep import along, frontier, letter
from audits.report.figures.utility import accuracy

__all__ = [
    "accuracy",
    "along",
    "epsilon",
    "frontier",
    "heat",
    "letter",
    "over_training",
    "parts",
    "roc",
    "scores",
    "timeline",
    "topology",
]
