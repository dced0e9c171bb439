"""DP-SGD on one party's segment, with the loss at another party.

Abadi et al. 2016 (arXiv 1607.00133); per-example gradients and their norms by Opacus (Yousefpour et al. 2021), ghost
clipping of Li et al. 2021 (arXiv 2110.05679). The gradient that comes back over the cut is that of the MEAN loss, row
by row, so each row's own gradient is B times what the segment's backward gives; it is clipped to C, summed, noised
with N(0, (sigma C)^2) and divided by B. Clipping what follows from the peer's gradient bounds it even where the peer
lies.

It protects records against whoever later sees the WEIGHTS. It does not protect smashed data, in which every example
stands by itself. Each step in which a record takes part is charged mu = 2 / sigma (replace-one), with participation
visible: the peers read one message per example, so no amplification by subsampling is claimed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secsplit.accounting import INPUTS, LABELS, Adjacency, Charge, gaussian_mu
from secsplit.defenses.base import Defense, Host
from secsplit.defenses.noise import Noise
from secsplit.defenses.nopeek import NoPeekSpec
from secsplit.defenses.spec import AtSegment, Positive, Spec
from secsplit.errors import RunError
from secsplit.message import Stamp
from secsplit.topology import Topology

INSIDE = 1 - 2.0**-14  # room for the rounding of float32 sums over a whole network's entries
LARGEST = 1e18  # beyond, squares overflow in float32
LONGEST = 1024.0  # times the clip: what a row's gradient may be in ghost clipping


class DPSGDSpec(AtSegment):
    """kind = "dp-sgd": per-example gradients of `segment` clipped to `clip`, their sum noised by sigma * clip.

    clipping: "hooks" keeps every example's gradient, "ghost" only their norms, at the price of a second backward pass.
    fix: replace layers that mix examples (batch normalisation becomes group normalisation) instead of refusing them.
    """

    guarantee = "dp"
    paper = "Abadi et al. 2016, arXiv 1607.00133"
    about = "per-example clipped, noised gradients for a segment's weights"

    kind: Literal["dp-sgd"] = "dp-sgd"
    clip: Positive
    sigma: Positive
    adjacency: Adjacency = "replace-one"
    clipping: Literal["hooks", "ghost"] = "hooks"
    fix: bool = False

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        if micro_batches > 1:
            raise RunError(
                f"train.micro_batches: {micro_batches} with dp-sgd on {self.segment!r}: per-example gradients are "
                "taken from one backward pass a step; use micro_batches = 1"
            )
        if any(isinstance(spec, AtSegment) and spec is not self and spec.segment == self.segment for spec in specs):
            raise RunError(f"defenses.segment: dp-sgd: another defense acts on the training of {self.segment!r} too")
        role = self.role(topology)
        if any(isinstance(spec, NoPeekSpec) and spec.role(topology) == role for spec in specs):
            raise RunError(
                f"defenses.kind: nopeek and dp-sgd at role {role!r}: a distance correlation makes each example's "
                "gradient depend on all examples of the batch, and no per-example clip bounds it; leave nopeek out"
            )

    def updates(self, segment: str) -> tuple[Charge, ...]:
        if segment != self.segment:
            return ()
        mu = gaussian_mu(self.sigma, adjacency=self.adjacency)
        text = f"dp-sgd sigma={self.sigma:g} clip={self.clip:g} on {segment}"
        return tuple(Charge(what, text, mu=mu, adjacency=self.adjacency) for what in (INPUTS, LABELS))

    def build(self, noise: Noise, classes: Mapping[str, int]) -> DPSGD:
        del classes
        return DPSGD(self, noise)


class DPSGD(Defense):
    """Hooks Opacus into a segment and rewrites its gradients just before its optimizer steps."""

    steps = True

    def __init__(self, spec: DPSGDSpec, noise: Noise) -> None:
        self.spec = spec
        self._noise = noise
        self._batch, self._draw = 1, ""
        self._parameters: list[nn.Parameter] = []
        self._ghost: Ghost | None = None

    def prepare(self, host: Host) -> None:
        """Raises RunError naming the layers that mix examples, unless `fix` replaces them."""
        from opacus.grad_sample.grad_sample_module import GradSampleHooks  # opacus takes seconds to import

        # Of a first segment, whose inputs are records: their gradient is not wanted, and the hooks do not need it.
        warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed", UserWarning)
        segment = self.spec.segment
        module = self._per_example(host.modules[segment])
        if module is not host.modules[segment]:
            host.modules[segment] = module
            optimizer = host.optimizers[segment]
            host.optimizers[segment] = type(optimizer)(module.parameters(), **optimizer.defaults)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if self.spec.clipping == "ghost":
            self._ghost = host.modules[segment] = Ghost(module, self)
        else:
            GradSampleHooks(module, loss_reduction="sum")
        host.optimizers[segment].register_step_pre_hook(lambda *_: self._privatise())

    def _per_example(self, module: nn.Module) -> nn.Module:
        """The module, without layers that mix examples and without in-place layers, which hooks cannot follow."""
        from opacus.validators import ModuleValidator

        if self.spec.fix:
            module = ModuleValidator.fix(module)
        mixing = [
            f"{path or 'itself'} ({type(layer).__name__})" for path, layer in module.named_modules() if mixes(layer)
        ]
        errors = [str(error).strip() for error in ModuleValidator.validate(module, strict=False)]
        if mixing or errors:
            raise RunError(
                f"defenses.segment: dp-sgd cannot bound one example's part in {self.spec.segment!r}: layers mix "
                f"examples or keep statistics of them: {', '.join(mixing) or '; '.join(errors)}; set fix = true to "
                "replace them (batch by group normalisation), or choose a model without"
            )
        for layer in module.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]
        return module

    def begin(self, stamp: Stamp, rows: Tensor) -> None:
        self._batch = len(rows)
        self._draw = f"dp-sgd|{self.spec.segment}|{stamp.step}|{stamp.epoch}|{stamp.cast}"

    def updates(self, segment: str) -> tuple[Charge, ...]:
        return self.spec.updates(segment)

    def _privatise(self) -> None:
        """Replace each parameter's gradient by the clipped sum plus noise, over B."""
        sums = self._ghost.take() if self._ghost is not None else self._clipped_sums()
        deviation = self.spec.sigma * self.spec.clip / self._batch
        for i, (parameter, total) in enumerate(zip(self._parameters, sums, strict=True)):
            drawn = self._noise.normal(f"{self._draw}|{i}", tuple(parameter.shape)).to(parameter)
            parameter.grad = drawn.mul_(deviation).add_(total)

    def _clipped_sums(self) -> list[Tensor]:
        """Sum over examples of their gradients clipped to C / B, parameter by parameter; frees what hooks kept."""
        samples: list[Tensor | None] = [getattr(p, "grad_sample", None) for p in self._parameters]
        for s in samples:
            if s is not None:  # a peer's gradient may overflow on the way: bounded, so that a norm exists to clip by
                s.nan_to_num_().clamp_(-LARGEST, LARGEST)
        known = [s for s in samples if s is not None]
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in known]).norm(dim=0) if known else torch.zeros(0)
        factor = self.factor(norms)
        for parameter in self._parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        return [
            torch.zeros_like(p) if s is None else torch.einsum("i,i...->...", factor, s)
            for p, s in zip(self._parameters, samples, strict=True)
        ]

    def factor(self, norms: Tensor) -> Tensor:
        """(batch,) what brings gradients of those norms a hair inside the ball of radius C / B; 0 for no norm."""
        factor = (self.radius * INSIDE / norms.clamp(min=1e-30)).clamp(max=1.0)
        return factor.nan_to_num(nan=0.0)

    @property
    def radius(self) -> float:
        """C / B: of the ball that an example's part of the mean gradient is clipped to."""
        return self.spec.clip / self._batch


def mixes(layer: nn.Module) -> bool:
    """Whether a layer's output or state depends on several examples: no per-example clip bounds it then."""
    norm = nn.modules.batchnorm._NormBase
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) or (isinstance(layer, norm) and layer.track_running_stats)


def linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Each example's gradient norms in a linear layer; of sequences by the gradients themselves.

    Opacus takes those of sequences from Gram matrices, whose terms cancel in float32: a peer can choose gradients whose
    norm then reads as nothing, and no clip happens.
    """
    from opacus.grad_sample.linear import compute_linear_grad_sample, compute_linear_norm_sample

    if backprops.dim() == 2:  # one position: nothing to cancel
        norms: dict[nn.Parameter, Tensor] = compute_linear_norm_sample(layer, activations, backprops)
        return norms
    samples = compute_linear_grad_sample(layer, activations, backprops)
    return {parameter: sample.flatten(1).norm(dim=1) for parameter, sample in samples.items()}


class Ghost(nn.Module):
    """A segment whose backward pass runs twice: once for per-example norms, once for the clipped sum (ghost clipping).

    Its state is the inner module's own, under the same names.
    """

    def __init__(self, inner: nn.Module, private: DPSGD) -> None:
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping

        super().__init__()
        self.inner = inner
        self._private = private
        self._hooks = GradSampleHooksFastGradientClipping(inner, loss_reduction="sum", use_ghost_clipping=True)
        self._hooks.NORM_SAMPLERS = {**self._hooks.NORM_SAMPLERS, nn.Linear: linear_norms}
        self._anchor = torch.zeros((), requires_grad=True)  # so that backward comes here even for the first segment
        self._sums: list[Tensor] | None = None

    def forward(self, *inputs: Tensor) -> Any:
        made = self.inner(*inputs)
        if not (self.training and torch.is_grad_enabled()):
            return made
        if not isinstance(made, Tensor):
            raise RunError("defenses.clipping: ghost clipping needs a cut that one tensor crosses; use 'hooks'")
        return _Twice.apply(self._anchor, lambda gradient: self.twice(made, gradient), made.detach())  # type: ignore[no-untyped-call]

    def twice(self, made: Tensor, gradient: Tensor) -> None:
        """Both passes: the inputs' gradients come from the first, unclipped; the weights' from the second.

        Unlike with hooks, what is clipped by is not the very gradient that is summed: the two differ by rounding, which
        is as large as their terms. So rows far longer than the clip are shortened first.
        """
        parameters = self._private._parameters
        lengths = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
        longest = LONGEST * self._private.radius
        shorter = (longest / lengths.clamp(min=longest)).to(gradient).view(-1, *[1] * (gradient.ndim - 1))
        gradient = gradient * shorter
        torch.autograd.backward(made, gradient, retain_graph=True)
        factor = self._private.factor(self._hooks.get_norm_sample())
        self._hooks.disable_hooks()
        scaled = gradient * factor.view(-1, *[1] * (gradient.ndim - 1))
        self._sums = list(torch.autograd.grad(made, parameters, scaled))
        if not all(bool(torch.isfinite(total).all()) for total in self._sums):
            raise RunError("defenses.clipping: an example's gradient overflowed; stopped; clipping = 'hooks' bounds it")
        self._hooks.enable_hooks()

    def take(self) -> list[Tensor]:
        """The clipped sums of the last backward pass, once."""
        sums, self._sums = self._sums, None
        return sums if sums is not None else [torch.zeros_like(p) for p in self._private._parameters]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.load_state_dict(*args, **kwargs)


class _Twice(torch.autograd.Function):
    """Hands the gradient to `Ghost.twice`, in whose closure the segment's own graph lives, out of autograd's sight."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, twice: Callable[[Tensor], None], made: Tensor) -> Tensor:
        del anchor
        ctx.twice = twice
        return made.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.twice(gradient)
        return None, None, None
