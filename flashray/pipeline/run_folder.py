"""The places of a run's own files: `<output>/_flashray` and `<output>/report.html`, next to the restored images."""

from __future__ import annotations

from collections.abc import Iterable

from flashray import storage
from flashray.errors import ConfigError

RUN_FOLDER = "_flashray"
SAMPLES = f"{RUN_FOLDER}/samples"  # a folder below it for each image that has several
PAGE = "report.html"  # the one file of a run that lies beside the restored images
_RECORD = f"{RUN_FOLDER}/run.json"
_OLD_LAYOUT = ("run.json", "archive.parquet")  # at the top of the output of a run in the older layout


def run_uri(output: str, *parts: str) -> str:
    """The URI of one of the run's own files or folders."""
    return storage.join(output, RUN_FOLDER, *parts)


def page_uri(output: str) -> str:
    """The URI of a run's page."""
    return storage.join(output, PAGE)


def run_files(keys: Iterable[str]) -> set[str]:
    """Those of the keys of an archive or output that runs wrote for themselves: their folders, and their pages."""
    own = {key for key in keys if RUN_FOLDER in key.split("/")[:-1]}
    runs = [
        key.removesuffix(_RECORD) for key in own if key.endswith(_RECORD) and key[: -len(_RECORD)][-1:] in ("", "/")
    ]
    return own | {run + PAGE for run in runs}


def refuse_old_layout(output: str) -> None:
    """Raise ConfigError where the output holds a run in the older layout, which kept its files elsewhere."""
    if all(storage.exists(storage.join(output, name)) for name in _OLD_LAYOUT):
        raise ConfigError(
            f"output {output} holds a run in an older layout (reconstructions/ and run.json at the top), "
            "which this version does not read or continue; choose another output"
        )
