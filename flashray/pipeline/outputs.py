"""The names of an archive's restored images, taken together: the one map from keys to outputs."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from flashray.errors import ConfigError
from flashray.images import OutputFormat, output_name
from flashray.pipeline.run_folder import PAGE, SAMPLES


def output_names(keys: Sequence[str], format: OutputFormat) -> dict[str, str]:
    """Name of a restored image → its key; ConfigError where two keys map to one name."""
    key_of: dict[str, str] = {}
    for key in keys:
        name = output_name(key, format)
        if name in key_of:
            raise ConfigError(
                f"{key_of[name]!r} and {key!r} would be written to one file, {name!r}; "
                "rename one of them, or leave out --format"
            )
        key_of[name] = key
    return key_of


def sample_names(name: str, samples: int) -> list[str]:
    """The files beside the restored image of this name, below the output: samples 1 … and the map of their spread.

    None where there is one sample. An image's files have a folder of their own, so they collide where names do.
    """
    if samples == 1:
        return []
    suffix = posixpath.splitext(name)[1]
    return [f"{SAMPLES}/{name}/{file}" for file in (*(f"{n}{suffix}" for n in range(1, samples)), "spread.png")]


def image_of(name: str) -> str:
    """The name of the restored image that a file below the output is, or is a sample or the spread of."""
    return posixpath.dirname(name.removeprefix(f"{SAMPLES}/")) if name.startswith(f"{SAMPLES}/") else name


def without_place(keys: Sequence[str], format: OutputFormat) -> dict[str, str]:
    """The keys whose restored images have no place below the output, and why each cannot be written.

    It would lie where others need a folder, or its name has parts like `..`, as objects of a store may. ConfigError as
    `output_names`.
    """
    key_of = output_names(keys, format)
    folders: set[str] = set()
    for name in key_of:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    led_out = {
        key: f"{key!r} is no name below the output; rename the object" for key in keys if not is_relative_name(key)
    }
    return led_out | {
        key_of[name]: f"its output {name!r} would lie where other images of the archive need a folder; rename it, "
        "or leave out --format"
        for name in key_of.keys() & folders
    }


def refuse_page(keys: Iterable[str], format: OutputFormat, copied: Iterable[str] = ()) -> None:
    """Raise ConfigError where an image of these keys, or a file of the `copied`, would lie where the run's page is."""
    places = [(output_name(key, format), "") for key in keys] + [
        (name, ", or leave out --copy-others") for name in copied
    ]
    for name, other_remedy in places:
        if name.split("/")[0] == PAGE:
            raise ConfigError(
                f"{name!r} of the archive would be written where the run's page is, {PAGE}; rename it{other_remedy}"
            )


def is_relative_name(key: str) -> bool:
    """Whether a key, joined to a folder, is a file below it and no other key's: no part is empty, `.` or `..`."""
    return not {"", ".", ".."} & set(key.split("/"))
