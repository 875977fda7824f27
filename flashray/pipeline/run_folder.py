"""The folder of a run's own files: `<output>/_flashray`, next to the restored images."""

from __future__ import annotations

from flashray import storage
from flashray.errors import ConfigError

RUN_FOLDER = "_flashray"
_OLD_LAYOUT = ("run.json", "archive.parquet")  # what a run of version 0.1 has at the top of its output


def run_uri(output: str, *parts: str) -> str:
    """The URI of one of the run's own files or folders."""
    return storage.join(output, RUN_FOLDER, *parts)


def is_run_file(key: str) -> bool:
    """Whether a key of an archive belongs to the run that wrote the archive, and is no image of it."""
    return RUN_FOLDER in key.split("/")[:-1]


def refuse_old_layout(output: str) -> None:
    """Raise ConfigError where the output holds a run of version 0.1, which kept its files elsewhere."""
    if all(storage.exists(storage.join(output, name)) for name in _OLD_LAYOUT):
        raise ConfigError(
            f"output {output} holds a run in the layout of version 0.1 (reconstructions/ and run.json at the top), "
            "which this version does not read or continue; choose another output"
        )
