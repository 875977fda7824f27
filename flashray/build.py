"""Build dataclasses from the values of YAML files and command lines, with errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from flashray.errors import ConfigError

T = TypeVar("T")


def build(kind: str, registry: Mapping[str, type[T]], name: str, settings: Mapping[str, Any] | None) -> T:
    """`registry[name](**settings)` for frozen dataclasses; lists become tuples.

    ConfigError for an unknown name or setting, with the nearest known ones, and for a value that the class rejects.
    """
    if name not in registry:
        raise ConfigError(
            f"{kind} {name!r} is not known{nearest(name, registry)}; known: {', '.join(sorted(registry))}"
        )
    return strict(registry[name], settings or {}, f"{kind} {name}")


def noise_range(noise_std: float | Sequence[float], name: str = "noise_std") -> tuple[float, float]:
    """(low, high) of a noise_std on the [0, 1] scale: one number is both; ConfigError unless 0 ≤ low ≤ high < ∞."""
    values = [noise_std, noise_std] if isinstance(noise_std, (int, float)) else noise_std
    numbers = isinstance(values, Sequence) and [one for one in values if isinstance(one, (int, float))]
    if not (numbers and numbers == list(values) and len(numbers) == 2 and 0 <= numbers[0] <= numbers[1] < math.inf):
        raise ConfigError(f"{name} is {noise_std}; give a number ≥ 0, or [low, high]")
    return float(numbers[0]), float(numbers[1])


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)" with the known names that resemble this one; empty where none does."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def strict(cls: type[T], values: Any, where: str) -> T:
    """`cls(**values)` for nested dataclasses, every key known and every value of its type; else ConfigError."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = mapping(values, where)
    unknown = sorted(values.keys() - set(fields))
    if unknown:
        known = ", ".join(fields) or "none"
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}{nearest(unknown[0], fields)}; known: {known}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    hints = get_type_hints(cls)
    return cls(**{name: _fitting(hints[name], value, f"{where}, {name}") for name, value in values.items()})


def _fitting(hint: Any, value: Any, where: str) -> Any:
    """The value as this type; ConfigError when it is of another one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or (origin is Literal and value in arguments) or (hint is NoneType and value is None):
        return value
    if dataclasses.is_dataclass(hint):
        return strict(cast(type[Any], hint), value, where)
    if origin is UnionType:
        fitting = [one for one in arguments if isinstance(value, get_origin(one) or one)] or arguments[:1]
        return _fitting(fitting[0], value, where)
    if origin is list and isinstance(value, list):
        return [_fitting(arguments[0], one, where) for one in value]
    if origin is dict:
        return {name: _fitting(arguments[1], one, f"{where}, {name}") for name, one in mapping(value, where).items()}
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_fitting(one, part, where) for one, part in zip(arguments, value, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value} is not finite; give a number")
        return float(value)
    if hint in (int, float, str, bool) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    wanted = " or ".join(map(str, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    if arguments == (float, float):
        raise ConfigError(f"{where}: {value!r} is no range; give [low, high], two numbers")
    raise ConfigError(f"{where}: {value!r} is not of type {wanted}")


def mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: give a mapping of names to values, not {values!r}")
    if strange := [name for name in values if not isinstance(name, str)]:
        raise ConfigError(f"{where}: {strange[0]!r} is no name; quote it if it is one")
    return values


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ConfigError with the nearest names unless the value is one of those known."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}{nearest(str(value), known)}; give {', '.join(known)}")
