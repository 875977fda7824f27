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
from flashray.degradations import Parameters, make_degradation
from flashray.degradations.noise import add_noise
from flashray.degradations.simulate import draw_parameters, observe
from flashray.errors import ConfigError, ImageError
from flashray.images import Fit, decode_image, fit_image
from flashray.pipeline.run_config import ReconstructConfig
from flashray.seeding import generator_of, image_seed

READERS = 8  # reads in flight of one load task


@dataclass(frozen=True)
class Loaded:
    """An image of the archive as it travels: 16-bit pixels [3, size, size] as bytes, or None with an `error`.

    Sixteen bits hold 8-bit images exactly and resized ones without a visible rounding. `width` and `height` are the
    file's own, upright. `mask` holds a byte a pixel, 1 where it is known.
    """

    pixels: bytes | None = None
    mask: bytes | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Frame:
    """What the archive's images are brought to: squares of `side` pixels.

    `resizable` is false for measurements of another size than the image's, whose pixels mean what they mean.
    """

    side: int
    fit: Fit
    resizable: bool = True

    @classmethod
    def of(cls, config: ReconstructConfig, size: int) -> Frame:
        """Of a run's archive; `size` is the side of the prior's images. Clean images and references are of that."""
        if config.measurement == "observed":
            degradation = make_degradation(config.degradation.name, config.degradation.settings)
            side, _ = degradation.measurement_size((size, size))
            return cls(side, config.fit, resizable=side == size)
        return cls(size, config.fit)

    def take(self, image_CHW: Tensor) -> Tensor:
        """The image as a square; ImageError where it does not fit."""
        height, width = image_CHW.shape[1:]
        if not self.resizable and self.fit == "resize" and (height, width) != (self.side, self.side):
            raise ImageError(
                f"the measurement has {width} x {height} pixels, not {self.side} x {self.side}, and cannot be resized; "
                "cut it to that size, or let fit: crop take its centre"
            )
        return fit_image(image_CHW, self.side, self.fit)

    def take_mask(self, mask_CHW: Tensor) -> Tensor:
        """[H, W] known pixels of an image's square: those that no missing pixel of the file has a hundredth part in."""
        half = torch.where(mask_CHW.mean(dim=0, keepdim=True) > 0, 0.5, -0.5)  # so that no overshoot is clamped
        return (self.take(half)[0] - 0.5).abs() < 0.01


def load_image(uri: str, frame: Frame, mask_uri: str | None = None) -> Loaded:
    """Read, decode and fit one image, and its mask; whatever is wrong with them becomes `error`."""
    loaded = Loaded()
    try:
        image = decode_image(storage.read_bytes(uri))
        loaded = Loaded(width=image.shape[2], height=image.shape[1])
        if mask_uri is not None:
            loaded = dataclasses.replace(loaded, mask=load_mask(mask_uri, frame, image))
        return dataclasses.replace(loaded, pixels=pack_pixels(frame.take(image)))
    except ImageError as error:
        return dataclasses.replace(loaded, error=str(error))
    except FileNotFoundError:
        return dataclasses.replace(loaded, error="there is no such file any more, or its name cannot be written")
    except storage.Unavailable:
        raise  # says nothing about the image; the run stops, and goes on when the store is back
    except Exception as error:  # an archive is full of surprises, and none of them may end the job
        return dataclasses.replace(loaded, error=f"it cannot be read: {type(error).__name__}: {error}")


def load_mask(uri: str, frame: Frame, image_CHW: Tensor) -> bytes:
    """The mask of an image (white is known), fitted as the image is; ImageError where it is not of the image's size."""
    try:
        mask = decode_image(storage.read_bytes(uri))
    except storage.Unavailable:
        raise
    except (OSError, ImageError) as error:
        raise ImageError(f"its mask {uri} cannot be read: {error}") from error
    if mask.shape != image_CHW.shape:
        (height, width), (rows, columns) = image_CHW.shape[1:], mask.shape[1:]
        raise ImageError(f"its mask {uri} has {columns} x {rows} pixels, and the image {width} x {height}")
    return frame.take_mask(mask).numpy().astype(np.uint8).tobytes()


def load_images(uris: Sequence[str], frame: Frame, mask_uris: Sequence[str | None] | None = None) -> list[Loaded]:
    """`load_image` of each, several at once."""
    masks = [None] * len(uris) if mask_uris is None else mask_uris
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda uri, mask: load_image(uri, frame, mask), uris, masks))


def mask_uri_of(given: str | None) -> str | None:
    """The place of an image's mask, of what a manifest or plan gives."""
    return json.loads(given or "{}").get("mask")


def pack_pixels(x_CHW: Tensor) -> bytes:
    """[C, H, W] in [-1, 1] as 16-bit numbers."""
    return ((x_CHW.clamp(-1, 1) + 1) * 32767.5).round().numpy().astype(np.uint16).tobytes()


def unpack_pixels(pixels: bytes, size: int) -> Tensor:
    """The [3, size, size] float32 image in [-1, 1] of `pack_pixels`."""
    return torch.from_numpy(np.frombuffer(pixels, np.uint16).astype(np.float32)).reshape(3, size, size) / 32767.5 - 1


def unpack_mask(mask: bytes | None, size: int) -> Tensor | None:
    """The [1, size, size] float32 mask of `Loaded.mask`."""
    if mask is None:
        return None
    return torch.from_numpy(np.frombuffer(mask, np.uint8).astype(np.float32)).reshape(1, size, size)


@dataclass(frozen=True)
class Photo:
    """One image about to be measured.

    Attributes:
        x: its pixels [3, H, W] in [-1, 1].
        given: the parameters that a manifest or plan gives, as JSON.
        noise_std: on the [0, 1] scale.
        mask: [1, H, W], 1 where a pixel is known, where a mask is given.
    """

    key: str
    x: Tensor
    given: str | None
    noise_std: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """Measurements of B images: y [B, 3, h, w] in [-1, 1], parameters, noise_std [B] on [0, 1], seeds [B].

    At the image's size, `seen` is y as severity encoders look at it, and `shown` as people do.
    """

    y_BCHW: Tensor
    seen_BCHW: Tensor
    shown_BCHW: Tensor
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
        self.fixed = self.degradation.fixed_parameters()

    def parameters(self, key: str, given: str | None, mask: Tensor | None = None) -> Parameters:
        """The degradation's parameters of one image, [1, …] each; ImageError where nothing tells them."""
        told = json.loads(given or "{}")
        if "mask" in told:
            if mask is None:
                raise ImageError("the manifest does not give its mask")
            return {"mask": mask[None]}
        values = {name: torch.tensor([float(value)]) for name, value in told.items()}
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

    def kept(self, photo: Photo) -> str:
        """One image's parameters as JSON, from which `photo` makes the same again; of a mask, its place."""
        if photo.mask is not None:
            return json.dumps({"mask": mask_uri_of(photo.given)})
        return json.dumps({name: value.item() for name, value in self.parameters(photo.key, photo.given).items()})

    def photo(
        self, key: str, x_CHW: Tensor, given: str | None, noise_std: float | None, mask: Tensor | None = None
    ) -> Photo:
        """An image that can be measured; ImageError where its parameters or its noise are not known."""
        self.parameters(key, given, mask)
        return Photo(key, x_CHW, given, self.noise_std(key, noise_std), mask)

    def measure(self, photos: Sequence[Photo], device: torch.device | str = "cpu") -> Measured:
        """The measurements of a batch."""
        drawn = [self.parameters(photo.key, photo.given, photo.mask) for photo in photos]
        parameters = {name: torch.cat([one[name] for one in drawn]).to(device) for name in drawn[0]}
        noise_std_B = torch.tensor([photo.noise_std for photo in photos], device=device)
        seed_B = torch.tensor([image_seed(self.seed, photo.key) for photo in photos], device=device)
        x = torch.stack([photo.x for photo in photos]).to(device)
        size = (x.shape[2], x.shape[3])
        operator = self.degradation.bind(parameters, size if self.simulated else self.degradation.image_size(size))
        if self.simulated:
            y = add_noise(operator.A(x), noise_std_B, seed_B)
        else:
            y = observe(x, operator, noise_std_B, seed_B) if self.degradation.takes_mask else x
        return Measured(y, operator.pseudo_image(y), operator.picture(y), parameters, noise_std_B, seed_B)
