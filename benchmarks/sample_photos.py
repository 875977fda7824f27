"""Real photos from inside other packages: cut into a small archive for demonstrations, and whole."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flashray.degradations import Degradation
from flashray.degradations.simulate import add_noise, draw_parameters
from flashray.errors import ConfigError
from flashray.images import as_image, encode_png, resize
from flashray.seeding import image_seed

_PHOTOS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "motorcycle_left.png"),
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
)
_MORE = (
    ("skimage.data", "camera.png"),
    ("skimage.data", "hubble_deep_field.jpg"),
    ("skimage.data", "ihc.png"),
    ("skimage.data", "retina.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


def sample_crops(count: int, size: int = 128) -> dict[str, Tensor]:
    """`count` square crops of the photos: name → [3, size, size] in [-1, 1]; each photo's shorter side is 2·size.

    Raises:
        ConfigError: when the packages are not installed, or there are not that many crops.
    """
    crops: dict[str, Tensor] = {}
    for name, photo in _read(_PHOTOS).items():
        scale = 2 * size / min(photo.shape[1:])
        sides = (round(photo.shape[1] * scale), round(photo.shape[2] * scale))
        photo = resize(photo[None], sides)[0]
        for top in range(0, sides[0] - size + 1, size // 2):
            for left in range(0, sides[1] - size + 1, size // 2):
                crops[f"{name}-{top:03d}-{left:03d}"] = photo[:, top : top + size, left : left + size]
    if not 0 < count <= len(crops):
        raise ConfigError(f"{count} sample crops: there are 1 to {len(crops)}")
    chosen = torch.linspace(0, len(crops) - 1, count).long().tolist()
    names = sorted(crops)
    return {names[n]: crops[names[n]] for n in chosen}


def whole_photos() -> dict[str, Tensor]:
    """Twelve photos of 300 to 1411 pixels a side: name → [3, H, W] in [-1, 1].

    ConfigError when the packages are not installed.
    """
    return _read(_PHOTOS + _MORE)


def _read(photos: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    found = {}
    for package, name in photos:
        top, *rest = package.split(".")
        spec = find_spec(top)  # where it is; an import of scikit-learn takes longer than all that is read from it
        folders = spec.submodule_search_locations if spec is not None else None
        try:
            data = Path(*(folders or [top]), *rest, name).read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(f"sample photo {name}: {error}; install flashray[demo]") from error
        found[Path(name).stem] = as_image(Image.open(io.BytesIO(data)))
    return found


def write_sample_archive(folder: Path, count: int, degradation: Degradation, noise_std: float, seed: int = 0) -> None:
    """Write `degraded/`, `clean/` (same keys) and `manifest.csv`, with the parameters of each image, under `folder`.

    Severities are drawn over the family's range; the files are 8-bit PNG, as real archives are.
    """
    crops = sample_crops(count)
    rows = []
    for part in ("degraded", "clean"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, x in crops.items():
        key = f"{name}.png"
        seed_1 = torch.tensor([image_seed(seed, key)])
        parameters = draw_parameters(degradation, int(seed_1))
        measured = degradation.bind(parameters, (x.shape[1], x.shape[2])).A(x[None])
        y = add_noise(measured, torch.tensor([noise_std]), seed_1)[0]
        (folder / "clean" / key).write_bytes(encode_png(x))
        (folder / "degraded" / key).write_bytes(encode_png(y))
        scalars = {name: parameters[name].item() for name in degradation.parameter_names}
        rows.append({"key": key, **scalars, "noise_std": noise_std})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (folder / "manifest.csv").write_text(text.getvalue())
