"""From images to measurements y = A(x) + n; every process computes the same ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations import Degradation, Operator, Parameters
from flashray.degradations.simulate import add_noise, draw_parameters, observe
from flashray.errors import ConfigError, ImageError
from flashray.images import Fit, fit_image
from flashray.seeding import generator_of, image_seed


@dataclass(frozen=True)
class Frame:
    """The form that images are brought to: squares of `side` pixels, or their own with the fit `whole`.

    `resizable` is false for measurements of another size than the image (super-resolution): resizing one would change
    what its pixels measure.
    """

    side: int
    fit: Fit = "resize"
    resizable: bool = True

    @classmethod
    def of_measurements(cls, degradation: Degradation, size: int, fit: Fit) -> Frame:
        """The frame of observed measurements; `size` is the side of the prior's images."""
        side, _ = degradation.measurement_size((size, size))
        return cls(side, fit, resizable=side == size)

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that an image of (H, W) pixels has in this form."""
        return size if self.fit == "whole" else (self.side, self.side)

    def take(self, image_CHW: Tensor) -> Tensor:
        """The image in this form; ImageError if that is not possible."""
        height, width = image_CHW.shape[1:]
        if not self.resizable and self.fit == "resize" and (height, width) != (self.side, self.side):
            raise ImageError(
                f"the measurement has {width} x {height} pixels, not {self.side} x {self.side}, and cannot be resized; "
                "cut it to that size, or use fit: crop, which takes its centre"
            )
        return fit_image(image_CHW, self.side, self.fit)

    def take_mask(self, mask_CHW: Tensor, image_CHW: Tensor) -> Tensor:
        """[1, H, W] known pixels in this form: those to which missing pixels contribute less than a hundredth.

        The given mask is white where a pixel is known. ImageError where none is, or it is not of the image's own size.
        """
        if mask_CHW.shape != image_CHW.shape:
            (height, width), (rows, columns) = image_CHW.shape[1:], mask_CHW.shape[1:]
            raise ImageError(f"the mask has {columns} x {rows} pixels, and the image {width} x {height}")
        grey = mask_CHW.mean(dim=0, keepdim=True)
        half = torch.where(grey > 0, 0.5, -0.5)  # so that overshoot is not clamped
        known = ((self.take(half) - 0.5).abs() < 0.01).float()
        if not known.any():
            raise ImageError(
                "the mask knows no pixel: it has to be white (255) where one is known, and its brightest value is "
                f"{round((float(grey.amax()) + 1) * 127.5)}"
            )
        return known


@dataclass(frozen=True)
class Photo:
    """One image to be measured."""

    key: str  # its name; all of its noise follows from (run seed, key)
    x: Tensor  # its pixels [3, H, W] in [-1, 1]
    parameters: Parameters  # the degradation's parameters, [1, …] each
    noise_std: float  # on the [0, 1] scale
    estimated: bool = False  # whether some of these numbers are a severity encoder's estimates


@dataclass(frozen=True)
class Measurement:
    """Measurements of B images of one size, all on one device."""

    keys: list[str]
    seeds: list[int]
    y_BCHW: Tensor  # in [-1, 1]
    operator: Operator  # A, bound to the parameters
    parameters: Parameters  # [B, …] each, as the solver is given them
    noise_std_B: Tensor  # on the [0, 1] scale
    x_BCHW: Tensor | None = None  # the clean images in [-1, 1] where the measurements are simulated, else None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        height, width = self.shown_BCHW.shape[2:]
        return height, width

    @property
    def seen_BCHW(self) -> Tensor:
        """y at the images' size, as the input of a severity encoder."""
        return self.operator.pseudo_image(self.y_BCHW)

    @property
    def shown_BCHW(self) -> Tensor:
        """y at the images' size, for display."""
        return self.operator.picture(self.y_BCHW)

    def select(self, rows: Tensor) -> Measurement:
        """The measurements of some of the images, by their indices."""
        chosen = rows.tolist()
        return Measurement(
            [self.keys[n] for n in chosen],
            [self.seeds[n] for n in chosen],
            self.y_BCHW[rows],
            self.operator.select(rows),
            {name: value[rows] for name, value in self.parameters.items()},
            self.noise_std_B[rows],
            None if self.x_BCHW is None else self.x_BCHW[rows],
        )


@dataclass(eq=False)
class Measurer:
    """Measurements of images: the images themselves when observed; when simulated, each is degraded by its key.

    All random draws follow from (run seed, key), so the same image always gives the same measurement.
    """

    degradation: Degradation
    noise_range: tuple[float, float]  # (low, high) of noise_std on the [0, 1] scale; equal ends fix it
    simulated: bool  # whether the images are clean and are degraded here, or are degraded already
    seed: int = 0  # of the run

    def __post_init__(self) -> None:
        self.fixed = self.degradation.fixed_parameters()

    def photo(
        self,
        key: str,
        x_CHW: Tensor,
        given: Mapping[str, float | Tensor] | None = None,
        noise_std: float | None = None,
        mask_1HW: Tensor | None = None,
        severity: float | None = None,
    ) -> Photo:
        """An image that can be measured.

        ImageError if parameters or noise are not known or are out of range, or a size does not fit.

        Args:
            x_CHW: [3, H, W] in [-1, 1].
            given: the operator's parameters, as far as they are known; numbers, or tensors for some operators.
            noise_std: on the [0, 1] scale, where it is known.
            mask_1HW: 1 where a pixel is known; replaces the parameters of inpainting families.
            severity: simulate at this severity of the family's range, 0 … 1, instead of a random one.
        """
        height, width = x_CHW.shape[1:]
        size = (height, width) if self.simulated else self.degradation.image_size((height, width))
        if mask_1HW is None or self.degradation.fixed_size:  # a mask replaces what the settings would draw
            try:
                self.degradation.check_size(size)
            except ConfigError as error:
                raise ImageError(str(error)) from error
        if mask_1HW is not None and mask_1HW.shape[1:] != x_CHW.shape[1:]:
            raise ImageError(
                f"the mask has {mask_1HW.shape[2]} x {mask_1HW.shape[1]} pixels, and the image {width} x {height}; "
                "give a mask of the image's size"
            )
        if mask_1HW is not None:
            parameters: Parameters = {"mask": mask_1HW[None]}
        else:
            parameters = self._parameters(key, given or {}, severity)
        return Photo(key, x_CHW, parameters, self._noise_std(key, noise_std))

    def missing(self, given: Collection[str], noise_std: float | None, mask_1HW: Tensor | None) -> list[str]:
        """The numbers that an observed image lacks; empty where it can be measured."""
        if self.simulated:
            return []
        lacking = [] if self.fixed is not None or mask_1HW is not None else list(self.degradation.parameter_names)
        low, high = self.noise_range
        return [name for name in lacking if name not in given] + ["noise_std"] * (noise_std is None and low < high)

    def measure(self, photos: Sequence[Photo], device: torch.device | str = "cpu") -> Measurement:
        """The measurements of a batch of images of one size, with parameters of the same names (`alike`)."""
        names = photos[0].parameters
        parameters = {name: torch.cat([photo.parameters[name] for photo in photos]).to(device) for name in names}
        noise_std_B = torch.tensor([photo.noise_std for photo in photos], device=device)
        seeds = [image_seed(self.seed, photo.key) for photo in photos]
        x = torch.stack([photo.x for photo in photos]).to(device)
        size = (x.shape[2], x.shape[3])
        operator = self.degradation.bind(parameters, size if self.simulated else self.degradation.image_size(size))
        seed_B = torch.tensor(seeds, device=device)
        if self.simulated:
            y = add_noise(operator.A(x), noise_std_B, seed_B)
        else:
            y = observe(x, operator, noise_std_B, seed_B) if self.degradation.takes_mask else x
        keys = [photo.key for photo in photos]
        return Measurement(keys, seeds, y, operator, parameters, noise_std_B, x if self.simulated else None)

    def _parameters(self, key: str, given: Mapping[str, float | Tensor], severity: float | None) -> Parameters:
        values = {name: torch.as_tensor(value, dtype=torch.float32)[None] for name, value in given.items()}
        seed = image_seed(self.seed, key)
        if self.simulated and severity is not None:
            drawn = self.degradation.parameters_at(torch.tensor([severity]), generator_of(seed, "degradation"))
            parameters = {**drawn, **values}
        elif self.simulated:
            parameters = {**draw_parameters(self.degradation, seed), **values}
        elif self.degradation.unknown and given:
            names = ", ".join(given)
            raise ImageError(f"its {names} is given, and {self.degradation.name} is unknown damage; leave it out")
        elif self.fixed is not None or set(values) >= set(self.degradation.parameter_names):
            parameters = {**(self.fixed or {}), **values}
        else:
            instead = ", or its mask," if self.degradation.takes_mask else ""
            raise ImageError(f"its {', '.join(self.degradation.parameter_names)}{instead} is not given")
        try:
            self.degradation.check_parameters(parameters)
        except ConfigError as error:
            raise ImageError(str(error)) from error
        return parameters

    def _noise_std(self, key: str, given: float | None) -> float:
        low, high = self.noise_range
        if given is not None:
            return float(given)
        if low == high:
            return low
        if not self.simulated:
            raise ImageError("its noise_std is not given")
        draw = torch.rand((), generator=generator_of(image_seed(self.seed, key), "noise_std")).item()
        return low + (high - low) * draw
