"""Every attack there is: this package's own, one file each, and those that other packages bring.

Ours are found by walking the package's modules, so that an attack is one file and nothing else to register; others come
by the entry-point group `secsplit.attacks`, whose entries name a class, and are listed, run and scored like ours:

    [project.entry-points."secsplit.attacks"]
    my-attack = "my_package.my_module:MyAttack"
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract

import attacks
from attacks.base import Attack
from secsplit.errors import RunError, nearest


@cache
def catalogue() -> dict[str, type[Attack]]:
    """name -> class, in the order of their names. Raises RunError for a plug-in that cannot be used or a name taken."""
    found: dict[str, type[Attack]] = {}
    for module in pkgutil.iter_modules(attacks.__path__):
        if module.name != "cli":
            for value in vars(import_module(f"attacks.{module.name}")).values():
                if isinstance(value, type) and issubclass(value, Attack) and not isabstract(value):
                    _add(found, value)
    for point in entry_points(group="secsplit.attacks"):
        _add(found, _plugged(point))
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


def _plugged(point: EntryPoint) -> type[Attack]:
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise RunError(f"attack {point.name!r}: cannot load {point.value}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Attack) and not isabstract(cls)):
        raise RunError(f"attack {point.name!r}: expected a subclass of attacks.base.Attack at {point.value}")
    if cls.name != point.name:
        raise RunError(f"attack {point.name!r}: the class at {point.value} calls itself {cls.name!r}; use one name")
    return cls


def _add(found: dict[str, type[Attack]], cls: type[Attack]) -> None:
    if found.setdefault(cls.name, cls) is not cls:
        raise RunError(f"attack {cls.name!r}: {cls.__module__} and {found[cls.name].__module__} both have that name")
