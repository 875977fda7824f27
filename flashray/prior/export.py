"""Writing the empty prompt's embedding into a pipeline's folder."""

from __future__ import annotations

from pathlib import Path

from flashray.errors import ConfigError
from flashray.prior.loading import open_family
from flashray.prior.null_prompt import FILE, POOLED, PROMPT


def export_null_prompt(folder: str | Path) -> Path:
    """Write null_prompt.safetensors into a pipeline's folder, with its own text encoders; returns the file's path.

    Afterwards the prior loads without the package transformers and without its text encoders. Its hash is another then,
    because other files are read: export before the first run. ConfigError if the folder is no pipeline, its denoiser
    takes no prompt or zeros for one, the file is there already, or the text encoders cannot be used.
    """
    from safetensors.torch import save_file

    pipeline, family = open_family(str(folder))
    if not family.files(pipeline):
        raise ConfigError(f"prior {folder}: this {family.name} needs no text encoder; there is nothing to export")
    path = pipeline.root / FILE
    if path.is_file():
        raise ConfigError(f"{path}: is there already; delete it to make it again")
    constants = family.condition(pipeline)
    save_file({name: value.contiguous() for name, value in constants.items() if name in (PROMPT, POOLED)}, path)
    return path
