"""Every attack there is: this package's own, one file each, and those that other packages bring.

Ours are found by walking the package's modules, so that an attack is one file and nothing else to register; others come
by the entry-point group `secsplit.attacks`, whose entries name a class.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import isabstract

import attacks
from attacks.base import Attack
from secsplit.errors import RunError, nearest


@cache
def catalogue() -> dict[str, type[Attack]]:
    """name -> class, in the order of their names. Raises RunError where two attacks have one name."""
    found: dict[str, type[Attack]] = {}
    for module in pkgutil.iter_modules(attacks.__path__):
        if module.name != "cli":
            for value in vars(import_module(f"attacks.{module.name}")).values():
                if isinstance(value, type) and issubclass(value, Attack) and not isabstract(value):
                    _add(found, value)
    for point in entry_points(group="secsplit.attacks"):
        _add(found, point.load())
    return dict(sorted(found.items()))


def attack(name: str, **options: object) -> Attack:
    """The attack of that name, configured. Raises RunError for an unknown name or option."""
    known = catalogue()
    if name not in known:
        raise RunError(f"attack {name!r}: there is none of that name; {nearest(name, known)}")
    fields = getattr(known[name], "__dataclass_fields__", {})
    for option in options:
        if option not in fields:
            raise RunError(f"attack {name!r}: unknown option {option!r}; {nearest(option, fields)}")
    return known[name](**options)


def _add(found: dict[str, type[Attack]], cls: type[Attack]) -> None:
    if found.setdefault(cls.name, cls) is not cls:
        raise RunError(f"attack {cls.name!r}: {cls.__module__} and {found[cls.name].__module__} both have that name")
