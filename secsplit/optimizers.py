"""Optimizers by name, their learning rates over the epochs, and their state as tensors: all torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from secsplit.errors import RunError, nearest

Optimizer = torch.optim.Optimizer
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
T = TypeVar("T")
Option = bool | int | float | str | tuple[float, ...] | None

NEED_MORE = ("LBFGS", "SparseAdam", "Muon")  # a closure, sparse gradients, matrices only
OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        name.lower(): kind
        for name in torch.optim.__all__
        if name not in NEED_MORE
        and isinstance(kind := getattr(torch.optim, name), type)
        and issubclass(kind, Optimizer)
        and kind is not Optimizer
    }
)
_RATES = torch.optim.lr_scheduler
RATES: Mapping[str, type[_RATES.LRScheduler]] = MappingProxyType(
    {
        "step": _RATES.StepLR,
        "multistep": _RATES.MultiStepLR,
        "constant": _RATES.ConstantLR,
        "linear": _RATES.LinearLR,
        "exponential": _RATES.ExponentialLR,
        "polynomial": _RATES.PolynomialLR,
        "cosine": _RATES.CosineAnnealingLR,
        "cosine-restarts": _RATES.CosineAnnealingWarmRestarts,
        "cyclic": _RATES.CyclicLR,
    }
)


class RateSpec(BaseModel):
    """The [optimizer.rate] table: one of torch's learning-rate schedules, an epoch a step, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, bool | int | float | str | tuple[float, ...]] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in RATES:
            raise ValueError(f"no such schedule; {nearest(name, RATES)}")
        return name


class OptimizerSpec(BaseModel):
    """The [optimizer] table, or [optimizers.ROLE] for one role: any torch optimizer by name, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "adam"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    betas: tuple[float, float] | None = None
    options: dict[str, bool | int | float | str | tuple[float, ...]] = {}  # the optimizer's others, by torch's names
    rate: RateSpec | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(f"no such optimizer; {nearest(name, OPTIMIZERS)}")
        return name


def optimizer_of(spec: OptimizerSpec, *, where: str = "optimizer") -> MakeOptimizer:
    """What makes the optimizer of a segment's parameters. Raises RunError naming the key below `where`."""
    kind = OPTIMIZERS[spec.name]
    named: dict[str, Option] = {"momentum": spec.momentum, "weight_decay": spec.weight_decay, "betas": spec.betas}
    options = {"lr": spec.lr, **{k: v for k, v in named.items() if v is not None}}
    _check_options(where, spec.name, kind, options, others=())
    _check_options(f"{where}.options", spec.name, kind, spec.options, others=("params", *named, "lr"))
    every = {**options, **spec.options}

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return kind(parameters, **every)  # type: ignore[arg-type]

    if spec.options:  # else nothing can be wrong; making one the first time takes a second
        _tried(where, spec.name, lambda: make([nn.Parameter(torch.zeros(1))]))
    return make


def rates_of(spec: OptimizerSpec, epochs: int, *, where: str = "optimizer") -> tuple[float, ...]:
    """The learning rate of every epoch, read off torch's schedule; empty where it stays as it is.

    Tabulated beforehand, so a rate depends on the epoch alone: nothing of it needs to be saved or handed over.
    """
    if spec.rate is None:
        return ()
    kind, options = RATES[spec.rate.name], spec.rate.options
    _check_options(f"{where}.rate.options", spec.rate.name, kind, options, others=("optimizer",))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=spec.lr)
    schedule = _tried(f"{where}.rate", spec.rate.name, lambda: kind(optimizer, **options))  # type: ignore[arg-type]
    rates = []
    for _ in range(epochs):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return tuple(rates)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """From now on learn at this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def drop_gradients(optimizer: Optimizer) -> None:
    """Forget the parameters' gradients: at once, where the optimizer keeps nothing of its own beside them."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def state_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors: "place of the parameter/name" -> tensor; rates and options are the run's."""
    found: dict[str, Tensor] = {}
    for place, state in sorted(optimizer.state_dict()["state"].items()):
        for name, value in sorted(state.items()):  # a restored state has them in another order
            if value is not None:
                found[f"{place}/{name}"] = torch.as_tensor(value).detach()
    return found


def restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `state_of` gave. Raises ValueError where it does not fit this optimizer's parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for key, value in tensors.items():
        place, _, name = key.partition("/")
        if not place.isdecimal() or int(place) >= len(parameters) or not name:
            raise ValueError(f"optimizer state {key!r} belongs to no parameter here")
        parameter = parameters[int(place)]
        if not _fits(value, parameter):
            shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
            raise ValueError(f"optimizer state {key!r} of shape {shapes}")
        own = value.detach().clone()
        optimizer.state[parameter][name] = own.to(parameter.device) if own.ndim else own


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether a state has its parameter's shape, or is one number a row or column of it, or one in all."""
    if value.ndim not in (0, parameter.ndim):
        return False
    return all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=bool(value.ndim)))


def _check_options(
    where: str, name: str, kind: type[object], options: Mapping[str, Option], *, others: tuple[str, ...]
) -> None:
    known = [option for option in signature(kind).parameters if option not in others]
    for option in options:
        if option not in known:
            raise RunError(f"{where}.{option}: {name!r} has no such option; {nearest(option, known)}")


def _tried(where: str, name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise RunError(f"{where}: {name!r} cannot work so: {error}") from None
