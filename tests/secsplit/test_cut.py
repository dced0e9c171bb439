"""A cut model is the model: the pieces' composition against the unsplit model, bit for bit, and every refusal."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secsplit.cut import cut
from secsplit.errors import CutError
from secsplit.vision import torchvision

SEPARABLE = {  # architecture: cuts of one value
    "resnet18": ["layer1", "layer2.0"],
    "resnet34": ["maxpool", "layer3.2.relu@1"],
    "resnet50": ["conv1", "layer2"],
    "vgg11": ["features.1", "classifier.2"],
    "vgg16": ["features.0"],
    "vgg16_bn": ["features.1", "avgpool"],
    "densenet121": ["features.pool0", "features.transition2"],
    "mobilenet_v3_small": ["features.0.1", "features.4"],
    "mobilenet_v3_large": ["features.6"],
    "efficientnet_b0": ["features.2", "avgpool"],
}
CROSSED = {  # architecture: cuts that a skip crosses
    "resnet18": ["layer2.0.bn1"],
    "resnet50": ["layer1.0.conv2", "layer1.0.downsample"],
    "densenet121": ["features.denseblock1.denselayer3"],
    "mobilenet_v3_small": ["features.1.block.1.scale_activation"],
}


def built(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    if not architecture.startswith("vgg"):
        return torchvision.models.get_model(architecture, num_classes=5)
    with torch.device("meta"):  # VGG's hidden layers of 4096 take seconds and test nothing that 16 do not
        model = torchvision.models.get_model(architecture)
        layers = [
            nn.Linear(512 * 49, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, 16),
            nn.ReLU(True),
            nn.Linear(16, 5),
        ]
        model.classifier = nn.Sequential(*layers)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def step(pieces: list[nn.Module], x: Tensor, y: Tensor) -> list[Tensor]:
    """One step as parties take it: each piece on its own leaves, then backward from the last to the first."""
    given: list[tuple[Tensor, ...]] = []
    handed: list[tuple[Tensor, ...]] = []
    values: tuple[Tensor, ...] = (x,)
    for k, piece in enumerate(pieces):
        given.append(tuple(value.detach().clone().requires_grad_(k > 0) for value in values))
        recorded = [value.detach().clone() for value in given[-1]]
        out = piece(*given[-1])
        assert all(torch.equal(a, b) for a, b in zip(given[-1], recorded, strict=True)), "changed what it was given"
        values = out if isinstance(out, tuple) else (out,)
        handed.append(values)
    F.cross_entropy(values[0], y).backward()
    for k in range(len(pieces) - 1, 0, -1):
        torch.autograd.backward(handed[k - 1], [value.grad for value in given[k]])
    return [values[0].detach()]


def compare(model: nn.Module, pieces: list[nn.Module], *, tolerance: float = 0.0) -> None:
    """The same step of the unsplit model and of its pieces: outputs, gradients, buffers."""
    whole = copy.deepcopy(model)
    x, y = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(7)
    expected = whole(x)
    F.cross_entropy(expected, y).backward()
    torch.manual_seed(7)  # dropout draws the same: the pieces run in the order of the whole
    (got,) = step(pieces, x, y)
    assert torch.equal(got, expected)
    names = [name for piece in pieces for name in piece.state_dict()]
    assert sorted(names) == sorted(whole.state_dict())
    gradients = {name: p.grad for piece in pieces for name, p in piece.named_parameters()}
    for name, parameter in whole.named_parameters():
        assert parameter.grad is not None
        difference = (gradients[name] - parameter.grad).abs().max() / parameter.grad.abs().max().clamp_min(1e-30)
        assert float(difference) <= tolerance, name
    buffers = {name: buffer for piece in pieces for name, buffer in piece.named_buffers()}
    assert all(torch.equal(buffers[name], buffer) for name, buffer in whole.named_buffers())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("architecture", SEPARABLE)
def test_pieces_compose_to_the_unsplit_model_bit_for_bit(architecture: str, training: bool) -> None:
    model = built(architecture).train(training)
    pieces = cut(model, SEPARABLE[architecture], torch.zeros(1, 3, 32, 32))
    assert len(pieces) == len(SEPARABLE[architecture]) + 1
    assert all(module.training is training for piece in pieces for module in piece.modules())
    compare(model, pieces)


@pytest.mark.parametrize("architecture", CROSSED)
def test_skips_may_cross_as_tuples_and_the_edge_is_named_where_they_may_not(architecture: str) -> None:
    model, at, example = built(architecture), CROSSED[architecture], torch.zeros(2, 3, 32, 32)
    with pytest.raises(CutError, match=r"cross(es)? it too: \S+ -> \S+"):
        cut(model, at, example)
    pieces = cut(model, at, example, skips="cross")
    assert isinstance(pieces[0](example), tuple)
    # a value that three use gets its gradients added in another order when it is also a leaf: one rounding
    compare(model, pieces, tolerance=0.0 if architecture != "densenet121" else 1e-5)


def test_the_message_names_the_edge() -> None:
    with pytest.raises(CutError, match=r"another edge crosses it too: layer1\.1\.relu@1 -> layer2\.0\.downsample\.0;"):
        cut(built("resnet18"), ["layer2.0.bn2"], torch.zeros(1, 3, 32, 32))


def test_pieces_can_be_copied_and_the_copy_is_independent_and_changes_mode() -> None:
    for architecture in ("resnet18", "efficientnet_b0"):
        model = built(architecture)
        pieces = cut(model, SEPARABLE[architecture], torch.zeros(1, 3, 32, 32))
        copies = [copy.deepcopy(piece) for piece in pieces]
        for piece, twin in zip(pieces, copies, strict=True):
            assert piece.state_dict().keys() == twin.state_dict().keys()
            assert not {id(p) for p in piece.parameters()} & {id(p) for p in twin.parameters()}
        compare(model.train(), [twin.train() for twin in copies])
        x = torch.randn(2, 3, 32, 32)
        model.eval()
        twin_out, out = x, x
        for piece, twin in zip(pieces, copies, strict=True):
            out, twin_out = piece.eval()(out), twin.eval()(twin_out)
        assert torch.equal(out, model(x))
        assert not torch.equal(twin_out, out)  # its BatchNorm statistics have moved on by a step


class Functional(nn.Module):
    """Works in place through functions and views, and asks whether it is training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Linear(4 * 900, 8), nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        F.relu_(h.view(-1, 900))
        h = F.leaky_relu(self.drop(self.second(h.flatten(1))), inplace=True)
        return self.third(F.dropout(h, 0.5, training=self.training))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "at", [["first"], ["second"], ["first", "second"], ["dropout"], ["leaky_relu"], ["drop"]], ids="-".join
)
def test_nothing_that_a_piece_is_given_changes_whatever_works_in_place(at: list[str], training: bool) -> None:
    torch.manual_seed(0)
    model = Functional().train(training)
    compare(model, cut(model, at, torch.zeros(1, 3, 32, 32)))


def test_a_sequential_is_cut_by_layer_name_whatever_its_layers_do() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().sum()) > 0 else 2 * x  # no tracer can follow this

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        conv, relu, fc = nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.Linear(1800, 5)
        return nn.Sequential(OrderedDict(conv=conv, relu_1=relu, undecided=Undecided(), flat=nn.Flatten(), fc=fc))

    for at in (["conv"], ["relu_1"], ["conv", "undecided", "flat"]):
        whole = model()
        compare(whole, cut(whole, at, torch.zeros(1, 3, 32, 32)))


def test_a_frozen_layer_stays_frozen_and_buffers_and_random_state_are_not_touched() -> None:
    model = built("resnet18")
    model.bn1.eval()
    example = torch.randn(2, 3, 32, 32)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pieces = cut(model, ["layer1"], example)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.bn1.training
    assert model.layer1.training
    compare(model, pieces)


def test_the_pieces_hold_the_model_s_own_parameters() -> None:
    model = built("vgg11")
    pieces = cut(model, ["features.5"], torch.zeros(1, 3, 32, 32))
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [own[id(p)] for piece in pieces for p in piece.parameters()] == list(own.values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(x)))
        return h @ self.a.weight


class Skipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + x


class Sized(Skipped):
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        return self.b(self.a(x)).reshape(n, 2, 2)


class Branching(Skipped):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


def resnet18() -> nn.Module:
    return built("resnet18")


@pytest.mark.parametrize(
    ("model", "at", "says"),
    [
        (resnet18, ["layer2.0.cnv1"], "computes no module 'layer2.0.cnv1'; did you mean 'layer2.0.conv1'"),
        (resnet18, ["layer2", "layer1"], "'layer1' does not come after 'layer2'"),
        (resnet18, ["layer1", "layer1"], "name each cut once"),
        (resnet18, ["fc"], None),
        (Tied, ["a"], "'a.weight' is used on both sides"),
        (Skipped, ["a"], "the model's input would cross it too, by the input -> add"),
        (Sized, ["a"], "getitem -> reshape carries no tensor"),
        (Branching, ["a"], "Branching cannot be traced"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_cut_that_cannot_be_made_says_why(model: type[nn.Module], at: list[str], says: str | None) -> None:
    example = torch.zeros(2, 3, 32, 32) if model is resnet18 else torch.zeros(2, 4)
    for skips in ("refuse", "cross"):
        if says is None:
            assert len(cut(model(), at, example, skips=skips)) == 2  # type: ignore[arg-type]
            continue
        with pytest.raises(CutError) as refusal:
            cut(model(), at, example, skips=skips)  # type: ignore[arg-type]
        assert says in str(refusal.value)


def test_an_input_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(CutError, match=r"does not take an input of shape \(2, 1, 32, 32\)"):
        cut(built("resnet18"), ["layer1"], torch.zeros(2, 1, 32, 32))
