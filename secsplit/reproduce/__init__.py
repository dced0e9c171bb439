"""Published tables and figures, computed again from what the system really does. One entry each; loaded when asked."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from secsplit.errors import RunError, nearest
from secsplit.reproduce.result import Options, Reproduce, Reproduction, Table

KNOWN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # name: (module:function, what)
        "gupta-table1": ("secsplit.reproduce.gupta_table1:table1", "client computation, VGG on CIFAR-10"),
        "gupta-table2": ("secsplit.reproduce.gupta_table2:table2", "client bandwidth, ResNet-50 on CIFAR-100"),
        "gupta-fig3": ("secsplit.reproduce.gupta_fig3:fig3", "accuracy against client computation, on data at hand"),
        "gawali": ("secsplit.reproduce.gawali:gawali", "federated, split and SplitFed learning of a diagnosis"),
    }
)


def named(name: str) -> Reproduce:
    """The reproduction of that name. Raises RunError."""
    if name not in KNOWN:
        raise RunError(f"reproduce: unknown name {name!r}; {nearest(name, KNOWN)}")
    module, _, function = KNOWN[name][0].partition(":")
    found: Reproduce = getattr(import_module(module), function)
    return found


__all__ = ["KNOWN", "Options", "Reproduce", "Reproduction", "Table", "named"]
