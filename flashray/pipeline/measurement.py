"""From a file to a measurement y, the same in every process that asks for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashray import storage
from flashray.config import ReconstructConfig
from flashray.degradations import Degradation, Parameters, make_degradation
from flashray.degradations.simulate import draw_parameters, simulate
from flashray.errors import ConfigError, ImageError
from flashray.images import Fit, decode_image, fit_image
from flashray.seeding import generator_of, image_seed

READERS = 8  # reads in flight of one load task


@dataclass(frozen=True)
class Loaded:
    """An image of the archive as it travels: 16-bit pixels [3, size, size] as bytes, or None with an `error`.

    Sixteen bits hold 8-bit images exactly and resized ones without a visible rounding. `width` and `height` are the
    file's own, upright.
    """

    pixels: bytes | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None


def load_image(uri: str, size: int, fit: Fit) -> Loaded:
    """Read, decode and fit one image; whatever is wrong with it becomes `error`."""
    loaded = Loaded()
    try:
        image = decode_image(storage.read_bytes(uri))
        loaded = Loaded(width=image.shape[2], height=image.shape[1])
        return dataclasses.replace(loaded, pixels=pack_pixels(fit_image(image, size, fit)))
    except ImageError as error:
        return dataclasses.replace(loaded, error=str(error))
    except FileNotFoundError:
        return dataclasses.replace(loaded, error="there is no such file any more, or its name cannot be written")
    except Exception as error:  # an archive is full of surprises, and none of them may end the job
        return dataclasses.replace(loaded, error=f"it cannot be read: {type(error).__name__}: {error}")


def load_images(uris: Sequence[str], size: int, fit: Fit) -> list[Loaded]:
    """`load_image` of each, several at once."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda uri: load_image(uri, size, fit), uris))


def pack_pixels(x_CHW: Tensor) -> bytes:
    """[C, H, W] in [-1, 1] as 16-bit numbers."""
    return ((x_CHW.clamp(-1, 1) + 1) * 32767.5).round().numpy().astype(np.uint16).tobytes()


def unpack_pixels(pixels: bytes, size: int) -> Tensor:
    """The [3, size, size] float32 image in [-1, 1] of `pack_pixels`."""
    return torch.from_numpy(np.frombuffer(pixels, np.uint16).astype(np.float32)).reshape(3, size, size) / 32767.5 - 1


def fixed_parameters(degradation: Degradation) -> Parameters | None:
    """The one set of parameters ([1, …] each) that the settings allow, or None where they leave a range."""
    mildest, hardest = (degradation.parameters_at(torch.full((1,), severity)) for severity in (0.0, 1.0))
    return mildest if all(torch.equal(mildest[name], hardest[name]) for name in mildest) else None


@dataclass(frozen=True)
class Photo:
    """One image about to be measured: its pixels [3, H, W], the parameters that a manifest or plan gives, its noise."""

    key: str
    x: Tensor
    given: str | None
    noise_std: float


@dataclass(frozen=True)
class Measured:
    """Measurements of B images: y [B, 3, H, W] in [-1, 1], parameters, noise_std [B] on [0, 1], seeds [B]."""

    y_BCHW: Tensor
    parameters: Parameters
    noise_std_B: Tensor
    seed_B: Tensor


class Measurer:
    """Measurements of the archive's images: the images themselves when observed, degraded by their keys when simulated.

    All draws follow from (run seed, key), so the plan and the solver see the same y.
    """

    def __init__(self, config: ReconstructConfig) -> None:
        self.degradation = make_degradation(config.degradation.name, config.degradation.settings)
        self.simulated = config.measurement == "simulated"
        self.noise_range = config.degradation.noise_range
        self.seed = config.seed
        self.fixed = fixed_parameters(self.degradation)

    def parameters(self, key: str, given: str | None) -> Parameters:
        """The degradation's parameters of one image, [1, …] each; ImageError where nothing tells them."""
        values = {name: torch.tensor([float(value)]) for name, value in json.loads(given or "{}").items()}
        if self.simulated:
            parameters = {**draw_parameters(self.degradation, image_seed(self.seed, key)), **values}
        elif self.fixed is not None or set(values) >= set(self.degradation.parameter_names):
            parameters = {**(self.fixed or {}), **values}
        else:
            raise ImageError(f"the manifest does not give its {', '.join(self.degradation.parameter_names)}")
        try:
            self.degradation.check_parameters(parameters)
        except ConfigError as error:
            raise ImageError(str(error)) from error
        return parameters

    def noise_std(self, key: str, given: float | None) -> float:
        """The standard deviation of one image's noise; ImageError where nothing tells it."""
        low, high = self.noise_range
        if given is not None:
            return float(given)
        if low == high:
            return low
        if not self.simulated:
            raise ImageError("the manifest does not give its noise_std")
        draw = torch.rand((), generator=generator_of(image_seed(self.seed, key), "noise_std")).item()
        return low + (high - low) * draw

    def scalars(self, parameters: Parameters) -> list[str]:
        """Each image's scalar parameters as JSON, from which `parameters` makes the same again."""
        names = self.degradation.parameter_names
        count = len(parameters[names[0]]) if names else 0
        return [json.dumps({name: parameters[name][i].item() for name in names}) for i in range(count)]

    def photo(self, key: str, x_CHW: Tensor, given: str | None, noise_std: float | None) -> Photo:
        """An image that can be measured; ImageError where its parameters or its noise are not known."""
        self.parameters(key, given)
        return Photo(key, x_CHW, given, self.noise_std(key, noise_std))

    def measure(self, photos: Sequence[Photo], device: torch.device | str = "cpu") -> Measured:
        """The measurements of a batch."""
        drawn = [self.parameters(photo.key, photo.given) for photo in photos]
        parameters = {name: torch.cat([one[name] for one in drawn]).to(device) for name in drawn[0]}
        noise_std_B = torch.tensor([photo.noise_std for photo in photos], device=device)
        seed_B = torch.tensor([image_seed(self.seed, photo.key) for photo in photos], device=device)
        y = torch.stack([photo.x for photo in photos]).to(device)
        if self.simulated:
            y = simulate(y, self.degradation, parameters, noise_std_B, seed_B)
        return Measured(y, parameters, noise_std_B, seed_B)
