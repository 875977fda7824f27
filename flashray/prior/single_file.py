"""Single-file checkpoints of the original layouts as folders in diffusers' layout."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from flashray.errors import ConfigError
from flashray.prior.folder import INDEX, PipelineFolder, open_pipeline
from flashray.prior.loading import load_prior
from flashray.prior.null_prompt import FILE
from flashray.prior.weights import WEIGHTS, read_json, read_tensors


def convert_single_file(checkpoint: str | Path, like: str | Path, output: str | Path) -> Path:
    """Write a prior's folder from a single file with autoencoder and denoiser; nothing is downloaded.

    diffusers' own tables say which tensor is which. The result is loaded once, so that not a tensor is missing, over,
    or of another shape. ConfigError if the output is there already, the file is no such checkpoint, or the configs are
    another model's.

    Args:
        checkpoint: a .safetensors file of Stable Diffusion, SDXL, SD3 or SANA as its authors publish it.
        like: a pipeline's folder in diffusers' layout for the same model; its configs, its scheduler, and
            null_prompt.safetensors or its text encoders are taken, and its weights need not be there.
        output: the new folder.
    """
    from safetensors.torch import save_file

    output = Path(output)
    if output.exists():
        raise ConfigError(f"{output} is there already; name a new folder")
    pipeline = open_pipeline(str(like))
    tensors = read_tensors([Path(checkpoint)])
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".flashray-") as made:
        folder = Path(made, output.name)
        for component in filter(None, (pipeline.autoencoder, pipeline.denoiser)):
            found = _converted(component, tensors, checkpoint)
            target = folder / component.relative_to(pipeline.root)
            target.mkdir(parents=True)
            save_file({name: value.contiguous() for name, value in found.items()}, target / f"{WEIGHTS}.safetensors")
            shutil.copy(component / "config.json", target)
        _copy_the_rest(pipeline, folder)
        load_prior(str(folder))
        folder.rename(output)
    return output


def _converted(component: Path, tensors: dict[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """The tensors of one model, by diffusers' names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    config = read_json(component / "config.json")
    kind = config.get("_class_name")
    convert = SINGLE_FILE_LOADABLE_CLASSES.get(kind, {}).get("checkpoint_mapping_fn")
    if convert is None:
        raise ConfigError(f"{component}: diffusers has no conversion of single files for a {kind}")
    try:
        found: dict[str, Any] = convert(checkpoint=dict(tensors), config=config)
        if not found:
            raise ValueError("none of its tensors")
    except Exception as error:  # any kind: the file's names go unchecked into it
        raise ConfigError(
            f"{checkpoint} does not hold the {kind} of {component / 'config.json'} ({type(error).__name__}: {error})"
        ) from error
    return found


def _copy_the_rest(pipeline: PipelineFolder, folder: Path) -> None:
    root = pipeline.root
    scheduler = folder / pipeline.scheduler.relative_to(root)
    scheduler.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(pipeline.scheduler, scheduler)
    for path in (root / INDEX, root / FILE):
        if path.is_file():
            shutil.copy(path, folder)
    if not (root / FILE).is_file():
        for path in (*root.glob("text_encoder*"), *root.glob("tokenizer*")):
            shutil.copytree(path, folder / path.name)
