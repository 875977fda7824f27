"""The job as a Python function."""

from __future__ import annotations

import json
from typing import Any

from flashray import storage
from flashray.pipeline.options import DEFAULT_RECIPE, run_config
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_folder import run_uri


def restore(archive: str, output: str, recipe: str = DEFAULT_RECIPE, **options: Any) -> dict[str, Any]:
    """Restore an archive, or what is missing of it; the same as `flashray restore ARCHIVE OUTPUT --recipe RECIPE`.

    Args:
        archive: folder or s3:// prefix of images, or one image.
        output: a new folder or s3:// prefix; a restored image is written to its key below it.
        recipe: a shipped recipe's name, or the path of a recipe file; photo, for unknown damage, by default.
        options: options of the command line, with underscores: `manifest="blur.csv"`, `limit=10`, `device="cpu"`; keys
            of the recipe as nested values or with dots: `**{"solver.steps": 50}`.

    Returns:
        The content of summary.json (`restored`, `failed`, `failures`, `mean_nfe`, …); empty with `plan_only=True`.

    Raises:
        ConfigError: before any work, when an argument is wrong.
        FlashrayError: when the run had to stop; the same call continues from there.
    """
    config = run_config({"archive": archive, "output": output, "recipe": recipe, **options})
    restore_archive(config)
    if config.policy.plan_only:
        return {}
    return json.loads(storage.read_bytes(run_uri(config.io.output, "summary.json")))
