"""A pipeline's folder in diffusers' layout: which component lies where. Nothing is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashray.errors import ConfigError
from flashray.prior.weights import read_json, tensor_names
from flashray.sources import local_folder

# diffusers' component names, in the order in which they are looked for
AUTOENCODER_NAMES = ("vqvae", "vae", "autoencoder")
# the first DDPM pipelines are their UNet's own folder
DENOISER_NAMES = ("unet", "denoiser", "transformer", ".")
_SOURCES = "`bundled`, a diffusers pipeline folder, a hub id (hf://owner/name), or a URI (s3://bucket/folder)"
INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
STATISTICS = "latent_statistics.json"


@dataclass(frozen=True)
class PipelineFolder:
    """What a folder says of itself."""

    source: str  # what the user called it; errors begin with it
    root: Path
    index: dict[str, Any]  # model_index.json, {} where there is none
    autoencoder: Path | None  # its folder; None where the latents are the pixels
    denoiser: Path  # its folder
    config: dict[str, Any]  # the denoiser's config.json
    scheduler: Path  # the path of its config

    @property
    def denoiser_class(self) -> str:
        """The denoiser's class, by the name that it has in diffusers today."""
        name = str(self.config.get("_class_name"))
        # pipelines saved before diffusers 0.30 call a DiT by the class that it was then
        legacy = name == "Transformer2DModel" and self.config.get("norm_type") == "ada_norm_zero"
        return "DiTTransformer2DModel" if legacy else name


def open_pipeline(source: str) -> PipelineFolder:
    """Find the components of a pipeline: `bundled`, a folder, a hub id, or a URI.

    ConfigError if the folder is missing, is something else than a pipeline, which is then named, or lacks a part.
    """
    root = resolve(source)
    _refuse_other_kinds(root, source)
    index = read_index(root)
    autoencoder = find_autoencoder(root, index)
    denoiser = find_component(root, DENOISER_NAMES)
    found = [path for path in (root / "scheduler" / SCHEDULER, root / SCHEDULER) if path.is_file()]
    if not found:
        raise ConfigError(f"prior {root}: scheduler/{SCHEDULER} is missing; a pipeline saved by diffusers has it")
    return PipelineFolder(source, root, index, autoencoder, denoiser, read_json(denoiser / "config.json"), found[0])


def read_index(root: Path) -> dict[str, Any]:
    """model_index.json, {} where there is none."""
    return read_json(root / INDEX) if (root / INDEX).is_file() else {}


def find_autoencoder(root: Path, index: dict[str, Any]) -> Path | None:
    """The autoencoder's folder; None for a pipeline that says that it has none."""
    if index and not set(AUTOENCODER_NAMES) & set(index):
        return None
    return find_component(root, AUTOENCODER_NAMES)


def find_component(root: Path, names: tuple[str, ...]) -> Path:
    """The first of these folders that has a config.json; ConfigError if none has."""
    for name in names:
        if (root / name / "config.json").is_file():
            return root / name
    raise ConfigError(f"prior {root}: none of {', '.join(f'{name}/config.json' for name in names)} is there")


def bundled(*parts: str) -> Path:
    """The path of something that comes inside the package."""
    return Path(__file__).resolve().parents[1].joinpath("assets", *parts)


def resolve(source: str) -> Path:
    """The folder of a source on this machine; ConfigError if there is none."""
    if source == "bundled":
        return bundled("prior")
    folder = local_folder(source, "prior")
    if folder.is_file():
        raise ConfigError(f"prior {source}: {_of_single_file(folder)}")
    if not folder.is_dir():
        raise ConfigError(f"prior {source}: no such folder; give {_SOURCES}")
    return folder


def _refuse_other_kinds(root: Path, source: str) -> None:
    """Name what is often taken for a pipeline and is none."""
    if (root / INDEX).is_file():
        return
    whole = "name the pipeline's folder, the one with model_index.json"
    if any((root / name).is_file() for name in ("pytorch_lora_weights.safetensors", "adapter_config.json")):
        raise ConfigError(f"prior {source}: a LoRA, which is no model by itself; fuse it into its pipeline and {whole}")
    if any((root / name).is_dir() for name in (*AUTOENCODER_NAMES, *DENOISER_NAMES[:-1])):
        return
    if (root / "config.json").is_file():
        config = read_json(root / "config.json")
        kind = config.get("_class_name") or config.get("architectures")
        if any(word in str(kind) for word in ("ControlNet", "T2IAdapter", "MotionAdapter")):
            raise ConfigError(f"prior {source}: a {kind}, which steers another model and is no prior; {whole}")
        raise ConfigError(f"prior {source}: one model alone ({kind}) and no pipeline; {whole}")
    loose = [path for path in sorted(root.iterdir()) if path.suffix in (".safetensors", ".ckpt")]
    if loose:
        raise ConfigError(f"prior {source}: {_of_single_file(loose[0])}")


def _of_single_file(path: Path) -> str:
    """What a file is that stands where a pipeline's folder is asked for."""
    if path.suffix not in (".safetensors", ".ckpt"):
        return f"{path.name} is a file; give {_SOURCES}"
    names = tensor_names(path) if path.suffix == ".safetensors" else []
    if any("lora_" in name for name in names):
        return f"{path.name} is a LoRA, which is no model by itself; fuse it into its pipeline and name that"
    if any(name.startswith("control_model.") for name in names):
        return f"{path.name} is a ControlNet, which steers another model and is no prior"
    return (
        f"{path.name} is a single-file checkpoint; convert it once into a diffusers folder: with "
        f"flashray.prior.convert_single_file('{path.name}', like='CONFIGS', output='FOLDER') where its model's configs "
        f"are, or where the hub can be reached with StableDiffusionPipeline.from_single_file('{path.name}')"
        ".save_pretrained('FOLDER') or its like"
    )
