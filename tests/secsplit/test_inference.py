"""Inference gives the unsplit network's outputs in eval mode, to whoever asked, and no label crosses."""

import pytest
import torch

from secsplit.drive import simulate
from secsplit.inference import Predictor
from secsplit.message import Kind
from secsplit.topology import DATA
from secsplit.transcript import Transcript
from secsplit.walk import merged
from tests.secsplit.graphs import GRAPHS, ROWS, SGD, modules_of, records_of, run_of


def unsplit_outputs(topology, modules, records) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for segment in topology.order:
            taken = [
                (
                    records[segment.role].inputs["test"][name.removeprefix(DATA)]
                    if name.startswith(DATA)
                    else outputs[name],
                )
                for name in segment.inputs
            ]
            outputs[segment.name] = modules[segment.name].eval()(*merged(segment, taken))
    return outputs


@pytest.mark.parametrize("name", GRAPHS)
def test_answers_are_the_unsplit_networks(name: str) -> None:
    topology = GRAPHS[name]
    run = run_of(topology, purpose="predict", batch_size=10)
    modules, records = modules_of(topology, dropout=0.5), records_of(topology)
    parties = {
        party: Predictor(run, party, {s.name: modules[s.name] for s in topology.held(party)}, {0: records[party]}, SGD)
        for party in run.file.parties
    }
    transcripts = {party: Transcript(party) for party in parties}
    simulate(parties, transcripts=transcripts)
    expected = unsplit_outputs(topology, modules, records)
    for objective in topology.objectives:
        answer = parties[objective.holder].predictions[objective.name, 0]
        assert answer.shape[0] == ROWS
        torch.testing.assert_close(answer, expected[objective.segment], rtol=1e-12, atol=1e-14)
    kinds = {record.kind for transcript in transcripts.values() for record in transcript}
    assert kinds <= {Kind.SMASHED, Kind.OUTPUT, Kind.CONTROL}
