"""The names of an archive's restored images, taken together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flashray.errors import ConfigError
from flashray.images import OutputFormat, output_name


def refuse_clashes(keys: Iterable[str], format: OutputFormat) -> None:
    """Raise ConfigError where two keys map to one output."""
    keys = list(keys)
    names = Counter(output_name(key, format) for key in keys)
    twice = [key for key in keys if names[output_name(key, format)] > 1]
    if twice:
        raise ConfigError(
            f"{twice[0]!r} and {twice[1]!r} would be written to one file, {output_name(twice[0], format)!r}; "
            "rename one of them, or leave out --format"
        )
