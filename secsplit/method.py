"""A training method is data: in what order a cohort's clients take turns, and whose weights are shared when.

Split learning with alternate-client and alternate-mini-batch turns: Gawali et al. 2021 (arXiv 2012.12591), the weights
handed over as in Gupta and Raskar 2018 (arXiv 1810.06060); SplitFed v1 and v2: Thapa et al. 2022 (arXiv 2004.12088);
v3: Gawali et al.; federated averaging: McMahan et al. 2017 (arXiv 1602.05629); large-batch synchronous SGD: Chen et al.
2016 (arXiv 1604.00981). `schedule` turns a method into events; nothing here computes or sends.

A *round* is what lies between two averagings: `local_epochs` passes over its own records of each client taking part.
Where nothing is averaged a round is one epoch. Weights are averaged in proportion to the clients' training records
(n_k / n over those who took part), as McMahan et al. and Thapa et al. (algorithm 1) write it; of v3 only the abstract
was at hand, and the same weighting is taken for its server copies. Large-batch gradients are averaged in proportion to
the rows of each client's mini-batch, so that the average is the gradient of the union batch's mean loss.

Whatever is averaged starts its next round with a fresh optimizer state, as in federated averaging; what is handed over
or unique keeps it. BatchNorm's statistics are averaged with the weights (`batch_norm = "averaged"`), or stay with each
client together with its BatchNorm's weights ("local": FedBN, Li et al. 2021, arXiv 2102.07623).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Order = Literal["alternate-client", "alternate-minibatch", "random-sequence", "parallel"]
ClientSide = Literal["handed-over", "averaged", "unique", "gradients-averaged"]
ServerSide = Literal["one", "copies", "none"]
Weighting = Literal["records", "equal"]
BatchNorm = Literal["averaged", "local"]
Via = Literal["peer", "server"]
Hands = Literal["weights", "weights-and-optimizer"]

AGGREGATOR = "aggregator"  # the role of a party that only averages; else the only server does
AVERAGED: tuple[ClientSide, ...] = ("averaged", "gradients-averaged")


@dataclass(frozen=True)
class Method:
    """order: how turns follow each other; client_side: what happens to the cohort's weights; server_side: one network
    fed in sequence, a copy for each client averaged every round, or none (no cut).

    fraction: of the clients that take part in a round, drawn anew each round; local_epochs: passes in a round;
    in_flight: clients whose mini-batches alternate, so that one computes while another is served (0: the order's own);
    weighting, batch_norm: of averages; via: how weights are handed over, `hands`: and what goes with them.
    """

    name: str
    order: Order
    client_side: ClientSide
    server_side: ServerSide
    about: str = ""
    fraction: float = 1.0
    local_epochs: int = 1
    in_flight: int = 0
    weighting: Weighting = "records"
    batch_norm: BatchNorm = "averaged"
    via: Via = "peer"
    hands: Hands = "weights"

    @property
    def averages(self) -> bool:
        """Whether anything is averaged at the end of a round."""
        return self.client_side == "averaged" or self.server_side == "copies"

    def group(self, clients: int) -> int:
        """How many of so many clients alternate batch by batch before the next ones begin."""
        if self.client_side == "gradients-averaged" or self.order == "alternate-minibatch":
            return clients
        own = {"alternate-client": 1, "random-sequence": 1, "parallel": 2}[self.order]
        return min(self.in_flight or own, clients)


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
