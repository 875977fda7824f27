"""One model of a folder in diffusers' layout: its config.json and its safetensors files, read with every check."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashray.errors import ConfigError

WEIGHTS = "diffusion_pytorch_model"  # diffusers' name of the weights, without its ending
_LARGEST, _LARGEST_SIDE, _MOST_LAYERS = 2**20, 8192, 1000
_NAMED = 5  # tensors in a message


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError if it cannot be read, is no JSON, gives a key twice or holds no object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
        return found

    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}; a model's config is an object")
    return value


def check_sizes(config: dict[str, Any], where: object) -> None:
    """Refuse a model's config whose numbers cannot be sizes, before anything is built of it.

    The ConfigError names the key of a number that is not finite, an integer below 0 or above 2^20, a sample_size above
    8192, or more than 1000 layers.
    """
    for key, value in config.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, int | float):
                continue
            largest = _LARGEST_SIDE if key == "sample_size" else _MOST_LAYERS if "layers" in key else _LARGEST
            if not math.isfinite(one) or (isinstance(one, int) and not 0 <= one <= largest):
                raise ConfigError(f"{where}: {key} holds {one}; give 0 … {largest}")


def weight_files(folder: Path, stem: str = WEIGHTS) -> list[Path]:
    """The files that hold a model's weights: one safetensors file, or an index followed by the files that it names.

    An index comes before a single file, and full precision before the variant `fp16`, as diffusers has it. ConfigError
    if there are none, or if an index names anything but safetensors files beside it.
    """
    for index in (folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors.index.fp16.json"):
        if index.is_file() and not (index.name.endswith("fp16.json") and (folder / f"{stem}.safetensors").is_file()):
            return [index, *_shards(index)]
    for single in (folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"):
        if single.is_file():
            return [single]
    raise ConfigError(
        f"{folder}: {stem}.safetensors is missing; save the pipeline with safe_serialization=True (flashray opens "
        "safetensors only, because other formats can run code)"
    )


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"{index}: weight_map is missing or empty; the index cannot be used")
    shards = []
    for name in sorted({str(name) for name in names.values()}):
        if not name.endswith(".safetensors"):
            raise ConfigError(f"{index}: names {name}; flashray opens safetensors only, save the model with them")
        if "/" in name or "\\" in name or not (index.parent / name).is_file():
            raise ConfigError(f"{index}: names {name}, which is not a file beside it")
        shards.append(index.parent / name)
    return shards


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of safetensors files by name, on the CPU; an index among the files is passed over.

    ConfigError if a file is damaged, or a name is in two of them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            found = load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(f"{path}: not a readable safetensors file: {error}") from error
        if doubled := sorted(set(found) & set(tensors)):
            raise ConfigError(f"{path}: {_some(doubled)} also in another file of the model")
        tensors |= found
    return tensors


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, without reading the tensors; ConfigError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return sorted(file.keys())
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file: {error}") from error


def load_model(cls: type, folder: Path) -> Any:
    """A model of diffusers' kind with exactly the weights of its folder, in float32 and evaluation mode, on the CPU.

    `cls` has diffusers' `from_config`; the caller has checked that config.json names it. The global random generator is
    left as it is. ConfigError if the config is malformed, or if a tensor is missing, unexpected, of another shape, or
    not finite.
    """
    path = folder / "config.json"
    config = read_json(path)
    check_sizes(config, path)
    tensors = read_tensors(weight_files(folder))
    skeleton: Any = _build(cls, config, path, "meta")
    if hasattr(skeleton, "_fix_state_dict_keys_on_load"):
        skeleton._fix_state_dict_keys_on_load(tensors)  # the attention of diffusers before 0.12
    for pattern in getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ():
        tensors = {name: value for name, value in tensors.items() if not re.search(pattern, name)}
    check_tensors(skeleton.state_dict(), tensors, folder)
    # copies, so that nothing depends on the file any more
    tensors = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in tensors.items()
    }
    if set(dict(skeleton.named_buffers())) - set(skeleton.state_dict()):  # some values are not in the file
        with torch.random.fork_rng(devices=[]):
            model = nn.Module.to(_build(cls, config, path, "cpu"), torch.float32)
        model.load_state_dict(tensors)
    else:
        model = skeleton
        model.load_state_dict(tensors, assign=True)
    return model.eval()


def _build(cls: Any, config: dict[str, Any], path: Path, device: str) -> nn.Module:
    try:
        with torch.device(device):
            model: nn.Module = cls.from_config(config)
    except Exception as error:  # any kind: the config's values go unchecked into the model's arithmetic
        kind = type(error).__name__
        raise ConfigError(f"{path}: no {cls.__name__} can be built of it ({kind}: {error})") from error
    return model


def check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], where: object) -> None:
    """Refuse weights that are not the model's.

    The ConfigError names the tensors that are missing, unexpected, of another shape, NaN or infinite.
    """
    if missing := sorted(set(expected) - set(found)):
        raise ConfigError(f"{where}: the weights lack {_some(missing)}; they are of another model, or cut")
    if strange := sorted(set(found) - set(expected)):
        raise ConfigError(f"{where}: the weights hold {_some(strange)}, which the config's model has no place for")
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ConfigError(
                f"{where}: {name} has the shape {list(found[name].shape)}, and the config asks for {list(value.shape)}"
            )
    check_finite(found, where)


def check_finite(tensors: dict[str, Tensor], where: object) -> None:
    """Refuse NaN and infinities; the ConfigError names the tensors."""
    bad = [name for name, value in sorted(tensors.items()) if value.is_floating_point() and not _finite(value)]
    if bad:
        raise ConfigError(f"{where}: {_some(bad)} hold NaN or infinite values; the file is damaged")


def _finite(value: Tensor) -> bool:
    # NaN and infinities go into the sum, which costs less than a look at each; a sum that overflows asks for that look
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(torch.isfinite(value).all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:_NAMED])}{more})"


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the names, relative to the folder, and the contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()
