"""The empty prompt's embedding: read from a file of the pipeline's folder, or computed by its text encoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.folder import INDEX, PipelineFolder
from flashray.prior.weights import check_finite, read_json, read_tensors, weight_files

FILE = "null_prompt.safetensors"
PROMPT = "null_prompt"  # [1, tokens, width]
POOLED = "null_pooled"  # [1, width]
_ENCODER = "model"  # transformers' name of the weights, without its ending
_TOKENIZER_ENDINGS = (".json", ".txt", ".model")


def null_prompt(pipeline: PipelineFolder, widths: dict[str, int]) -> dict[str, Tensor]:
    """The embeddings of the empty prompt in single precision, by name.

    The file null_prompt.safetensors comes before the text encoders, so that a run does not depend on what is installed.
    `widths` has the names that the denoiser asks for, with the last dimension of each. ConfigError if there is neither
    a file nor a text encoder that can be used, or if the widths differ.
    """
    path = pipeline.root / FILE
    found = read_tensors([path]) if path.is_file() else _encode(pipeline)
    where = path if path.is_file() else f"prior {pipeline.source}: the text encoder"
    chosen: dict[str, Tensor] = {}
    for name, width in widths.items():
        rank = 3 if name == PROMPT else 2
        if name not in found:
            raise ConfigError(f"{where}: the tensor {name} is missing")
        value = found[name].float()
        if value.ndim != rank or value.shape[0] != 1 or value.shape[-1] != width or not value.numel():
            asked = f"[1, tokens, {width}]" if rank == 3 else f"[1, {width}]"
            raise ConfigError(f"{where}: {name} has the shape {list(value.shape)}, and the denoiser takes {asked}")
        chosen[name] = value
    check_finite(chosen, where)
    return chosen


def condition_files(pipeline: PipelineFolder) -> list[Path]:
    """The files that `null_prompt` reads; ConfigError if neither its own file nor the text encoder is there."""
    if (pipeline.root / FILE).is_file():
        return [pipeline.root / FILE]
    files: list[Path] = []
    for name in _components(pipeline):
        folder = pipeline.root / name
        if name.startswith("tokenizer"):
            files += [path for path in sorted(folder.iterdir()) if path.suffix in _TOKENIZER_ENDINGS]
        else:
            files += [folder / "config.json", *weight_files(folder, _ENCODER)]
    return files


def _components(pipeline: PipelineFolder) -> list[str]:
    """The names of the text encoders and tokenizers that the pipeline says it has, each of them there."""
    names = [
        name
        for name, entry in pipeline.index.items()
        if name.startswith(("text_encoder", "tokenizer")) and isinstance(entry, list) and entry[-1] is not None
    ]
    if not any(name.startswith("text_encoder") for name in names):
        raise ConfigError(
            f"prior {pipeline.source}: neither {FILE} nor a text encoder in {INDEX}; write the file with "
            "flashray.prior.export_null_prompt where the whole pipeline is"
        )
    _check_libraries(pipeline, names)
    for name in names:
        config = "tokenizer_config.json" if name.startswith("tokenizer") else "config.json"
        if not (pipeline.root / name / config).is_file():
            raise ConfigError(
                f"prior {pipeline.source}: {name}/{config} is missing, and {FILE} is not there either; write the file "
                "with flashray.prior.export_null_prompt where the whole pipeline is"
            )
    return names


def _check_libraries(pipeline: PipelineFolder, names: list[str]) -> None:
    """Refuse classes from elsewhere: a library can name a file in the pipeline's folder, whose code would run."""
    for name, library in {**dict.fromkeys(names, "transformers"), "scheduler": "diffusers"}.items():
        entry = pipeline.index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != library or not isinstance(entry[1], str):
            raise ConfigError(
                f"prior {pipeline.source}: {INDEX} gives {name} as {entry!r}; a class of {library} is asked for"
            )


@torch.no_grad()
def _encode(pipeline: PipelineFolder) -> dict[str, Tensor]:
    """What the pipeline's own `encode_prompt` says of an empty prompt."""
    names = _components(pipeline)
    encoders = {name: _text_encoder(pipeline, name) for name in names if name.startswith("text_encoder")}
    import diffusers

    kind = str(pipeline.index.get("_class_name"))
    cls: Any = getattr(diffusers, kind, None)
    if cls is None or not hasattr(cls, "encode_prompt"):
        raise ConfigError(f"prior {pipeline.source}: a {kind} cannot say what an empty prompt is; write {FILE}")
    others = {
        name: None
        for name, entry in pipeline.index.items()
        if isinstance(entry, list) and name not in names and name != "scheduler"
    }
    try:
        whole = cls.from_pretrained(pipeline.root, local_files_only=True, **others, **encoders)
        if "transformer" in others:  # SD3 asks its transformer for the width of an encoder that was left out
            vars(whole)["transformer"] = SimpleNamespace(config=SimpleNamespace(**pipeline.config))
        return _EMPTY.get(kind, _of_stable_diffusion)(whole)
    except Exception as error:  # tokenizers, encoders and pipelines raise many kinds
        raise ConfigError(
            f"prior {pipeline.source}: the text encoder does not work ({type(error).__name__}: {error}); write {FILE} "
            "with flashray.prior.export_null_prompt where it does"
        ) from error


def _text_encoder(pipeline: PipelineFolder, name: str) -> Any:
    """A text encoder with exactly the weights of its folder."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"prior {pipeline.source}: the empty prompt needs the package transformers, which is not installed; "
            f"install it, or write {FILE} with flashray.prior.export_null_prompt where it is"
        ) from error
    folder = pipeline.root / name
    kind = pipeline.index[name][1]
    if not hasattr(transformers, kind):
        raise ConfigError(f"prior {pipeline.source}: {name} is a {kind}, which transformers does not have")
    read_json(folder / "config.json")
    files = weight_files(folder, _ENCODER)
    check_finite(read_tensors(files), folder)
    variant = "fp16" if ".fp16." in files[0].name else None
    try:
        encoder, report = getattr(transformers, kind).from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise ConfigError(f"{folder}: the text encoder does not open ({type(error).__name__}: {error})") from error
    wrong = sorted({str(key) for part in ("missing_keys", "mismatched_keys") for key in report.get(part, ())})
    if wrong:
        raise ConfigError(f"{folder}: the weights lack {', '.join(wrong[:5])}, or have them in another shape")
    return encoder.float().eval()


def _of_stable_diffusion(pipeline: Any) -> dict[str, Tensor]:
    prompt, _ = pipeline.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
    return {PROMPT: prompt}


def _of_two_encoders(pipeline: Any) -> dict[str, Tensor]:
    prompt, _, pooled, _ = pipeline.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
    return {PROMPT: prompt, POOLED: pooled}


def _of_three_encoders(pipeline: Any) -> dict[str, Tensor]:
    prompt, _, pooled, _ = pipeline.encode_prompt("", "", "", device="cpu", do_classifier_free_guidance=False)
    return {PROMPT: prompt, POOLED: pooled}


def _of_sana(pipeline: Any) -> dict[str, Tensor]:
    _, _, prompt, mask = pipeline.encode_prompt("", negative_prompt="", device="cpu")
    return {PROMPT: prompt[:, mask[0].bool()]}  # attention to padding is masked: without it nothing is


_EMPTY = {
    "StableDiffusionXLPipeline": _of_two_encoders,
    "StableDiffusion3Pipeline": _of_three_encoders,
    "SanaPipeline": _of_sana,
}
