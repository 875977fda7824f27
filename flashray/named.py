"""Build a named thing from its settings, with errors that name what is unknown and list what is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from flashray.errors import ConfigError

T = TypeVar("T")


def build(kind: str, registry: Mapping[str, type[T]], name: str, settings: Mapping[str, Any] | None) -> T:
    """`registry[name](**settings)` for frozen dataclasses; lists become tuples, unknown names and keys ConfigErrors."""
    if name not in registry:
        raise ConfigError(f"{kind} {name!r} is not known; known: {', '.join(sorted(registry))}")
    cls = registry[name]
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    settings = dict(settings or {})
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{kind} {name}: unknown setting {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {name}: {error}") from error
