"""A training method is data: in what order a cohort's clients take turns, and whose weights are shared when.

Split learning with alternate-client and alternate-mini-batch turns: Gawali et al. 2021 (arXiv 2012.12591); SplitFed v1
and v2: Thapa et al. 2022 (arXiv 2004.12088); v3: Gawali et al.; federated averaging: McMahan et al. 2017; large-batch
synchronous SGD: Chen et al. 2016. `schedule` turns a method into turns; nothing here computes or sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Order = Literal["alternate-client", "alternate-minibatch", "random-sequence", "parallel"]
ClientSide = Literal["handed-over", "averaged", "unique", "gradients-averaged"]
ServerSide = Literal["one", "copies", "none"]


@dataclass(frozen=True)
class Method:
    """order: how turns follow each other; client_side: what happens to the cohort's weights; server_side: one network
    fed in sequence, a copy for each client averaged every round, or none (no cut)."""

    name: str
    order: Order
    client_side: ClientSide
    server_side: ServerSide
    about: str = ""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "sl-ac", "alternate-client", "handed-over", "one", "a client takes all its mini-batches, then the next"
            ),
            Method(
                "sl-am", "alternate-minibatch", "handed-over", "one", "the next client takes over after one mini-batch"
            ),
            Method(
                "splitfed-v1", "parallel", "averaged", "copies", "client sides and server copies averaged every round"
            ),
            Method(
                "splitfed-v2", "random-sequence", "averaged", "one", "clients in random sequence; client sides averaged"
            ),
            Method("splitfed-v3", "parallel", "unique", "copies", "each client keeps its own; server copies averaged"),
            Method(
                "federated", "parallel", "averaged", "none", "the whole network at each client, averaged every round"
            ),
            Method("large-batch", "parallel", "gradients-averaged", "none", "gradients averaged at every step"),
        )
    }
)
