"""The names of an archive's restored images, taken together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flashray.errors import ConfigError
from flashray.images import OutputFormat, output_name
from flashray.pipeline.run_folder import PAGE


def refuse_clashes(keys: Iterable[str], format: OutputFormat, copied: Iterable[str] = ()) -> None:
    """Raise ConfigError where two keys map to one output, or one of them or of the `copied` files to the run's page."""
    keys = list(keys)
    names = Counter(output_name(key, format) for key in keys)
    twice = [key for key in keys if names[output_name(key, format)] > 1]
    if twice:
        raise ConfigError(
            f"{twice[0]!r} and {twice[1]!r} would be written to one file, {output_name(twice[0], format)!r}; "
            "rename one of them, or leave out --format"
        )
    on_page = next((name for name in (*names, *copied) if name.split("/")[0] == PAGE), None)
    if on_page is not None:
        raise ConfigError(
            f"{on_page!r} of the archive would be written where the run's page is, {PAGE}; rename it"
            + (", or leave out --copy-others" if on_page not in names else "")
        )
