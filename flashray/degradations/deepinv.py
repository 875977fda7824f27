"""Operators of deepinv: any `deepinv.physics.Physics` with measurements [B, C, h, w] as a degradation.

deepinv's images are in [0, 1] and flashray's in [-1, 1]: A(x) = 2 P((x + 1)/2) - 1, with the physics' own P.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.build import nearest
from flashray.degradations.base import AffineOperator, Degradation, Operator, Parameters
from flashray.degradations.deepinv_physics import check_physics, library, make_physics, measure, parameters_of, refused
from flashray.degradations.masking import fill_in
from flashray.errors import ImageError

SIDE = 128  # of the image that a physics of any size is tried on
FAINT = 0.05  # a measurement of which white gives less than this share of the largest knows nothing of the image


@dataclass(frozen=True)
class DeepinvPhysics(Degradation):
    """A forward operator of deepinv without its noise, which is `noise_std` as everywhere (but see flashray.deepinv).

    The parameters of an image are tensors that the physics' `update_parameters` takes. What an image has none of is as
    the physics has it.

    Attributes:
        physics: the name of a class of deepinv.physics, {name: {argument: value}}, or a Physics, of which a copy is
            used. Among the arguments lists of lists are tensors, rows of numbers one of [1, 1, h, w], and
            {function: {argument: value}} is a call of one in deepinv.physics.functional.
        size: (H, W) of the images, where the physics fits one size and has no attribute img_size; (0, 0) is any size.
    """

    physics: Any = None
    size: tuple[int, int] = (0, 0)

    name: ClassVar[str] = "deepinv"
    linear: ClassVar[bool] = True  # this, the next and takes_mask are those of the physics in each instance
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        linear, tensors = isinstance(self.made, library().physics.LinearPhysics), parameters_of(self.made)
        masked = "mask" in tensors and tuple(tensors["mask"].shape[2:]) == self.fixed_size
        for name, value in {"linear": linear, "parameter_names": tuple(tensors), "takes_mask": masked}.items():
            object.__setattr__(self, name, value)
        check_physics(self.made, self.fixed_size or (SIDE, SIDE), linear)
        if not (linear or self.fixed_size or self.measurement_size((SIDE, SIDE)) == (SIDE, SIDE)):
            raise refused(self.made, "changes an image's size and has no adjoint that tells by how much; give size")

    @cached_property
    def made(self) -> Any:
        return make_physics(self.physics)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        own = getattr(self.made, "img_size", None) or getattr(self.made, "imsize", None) or (0, 0)
        height, width = self.size if any(self.size) else own[-2:]
        return (height, width) if height else None

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        return {}

    def check_parameters(self, parameters: Parameters) -> None:
        present = parameters_of(self.made)
        for name, value in parameters.items():
            if name not in present:
                known = ", ".join(present) or "none"
                raise refused(self.made, f"has no parameter {name}{nearest(name, present)}; give one of: {known}")
            wanted, given = list(present[name].shape[1:]), list(value.shape[1:])
            if len(wanted) != len(given) or wanted[-2:] != given[-2:] or not bool(torch.isfinite(value).all()):
                raise refused(self.made, f"takes {name} as finite numbers {wanted} an image; give such, not {given}")

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> PhysicsOperator:
        return (LinearPhysicsOperator if self.linear else PhysicsOperator)(self.made, parameters, size)

    def check_size(self, size: tuple[int, int]) -> None:
        found = self.image_size(self.measurement_size(size))
        if found != size:
            raise refused(self.made, f"is for images of {found[1]} x {found[0]}, not {size[1]} x {size[0]}; give such")

    def measurement_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return measured_shape(self.made, self.fixed_size or size)[1:]

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.fixed_size:
            height, width = self.measurement_size(size)
            if size != (height, width):
                raise ImageError(f"the measurement has {size[1]} x {size[0]} pixels, not {width} x {height}")
            return self.fixed_size
        return adjoint_size(self.made, measured_shape(self.made, (SIDE, SIDE))[0], size) if self.linear else size


@lru_cache(maxsize=64)
def measured_shape(physics: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    """(C, h, w) of the measurement of an image of size (H, W)."""
    channels, height, width = measure(physics, torch.zeros(1, 3, *size)).shape[1:]
    return channels, height, width


@lru_cache(maxsize=64)
def adjoint_size(physics: Any, channels: int, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the image whose measurement has C channels and size (h, w)."""
    with torch.no_grad():
        height, width = physics.A_adjoint(torch.zeros(1, channels, *size)).shape[2:]
    return height, width


class Apply(torch.autograd.Function):
    """P, with the physics' own A_vjp as its derivative: of a linear one A_adjoint."""

    @staticmethod
    def forward(x_BCHW: Tensor, physics: Any) -> Tensor:
        y: Tensor = physics.A(x_BCHW)
        return y.clone() if y is x_BCHW else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        x_BCHW, ctx.physics = inputs
        ctx.save_for_backward(x_BCHW)
        ctx.save_for_forward(x_BCHW)

    @staticmethod
    def backward(ctx: Any, v_BCHW: Tensor) -> tuple[Tensor, None]:
        return ctx.physics.A_vjp(*ctx.saved_tensors, v_BCHW), None

    @staticmethod
    def jvp(ctx: Any, d_BCHW: Tensor, _: None) -> Any:
        return torch.func.jvp(ctx.physics.A, ctx.saved_tensors, (d_BCHW,))[1]


@dataclass(frozen=True)
class PhysicsOperator(Operator):
    """A physics with the parameters of B images of size (H, W)."""

    physics: Any
    parameters: Parameters
    size: tuple[int, int]

    @cached_property
    def bound(self) -> Any:
        """The physics with these parameters: a copy, because it keeps them."""
        if not self.parameters:
            return self.physics
        own = self.physics.clone()
        own.update_parameters(**self.parameters)
        return own

    def unit(self, x_BCHW: Tensor) -> Tensor:
        """P(x) of images in [0, 1]."""
        y: Tensor = Apply.apply(x_BCHW, self.bound.to(x_BCHW.device))
        return y

    def A(self, x_BCHW: Tensor) -> Tensor:
        return 2 * self.unit((x_BCHW + 1) / 2) - 1

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.physics, {name: value[rows] for name, value in self.parameters.items()}, self.size)

    def picture(self, y_BCHW: Tensor) -> Tensor:
        y = in_colour(y_BCHW)
        if tuple(y.shape[2:]) == self.size:
            return y
        return F.interpolate(y, size=self.size, mode="bicubic", align_corners=False)


@dataclass(frozen=True)
class LinearPhysicsOperator(AffineOperator, PhysicsOperator):
    """A linear physics. What it makes of white and of ramps tells where in the image each measurement looks."""

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return self.unit(x_BCHW)

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        x: Tensor = self.bound.to(y_BCHW.device).A_adjoint(y_BCHW)
        return x

    def picture(self, y_BCHW: Tensor) -> Tensor:
        return self._as_image(y_BCHW, filled=False)

    def pseudo_image(self, y_BCHW: Tensor) -> Tensor:
        return self._as_image(y_BCHW, filled=True)

    @torch.no_grad()
    def _as_image(self, y_BCHW: Tensor, filled: bool) -> Tensor:
        """y over what white gives, black or filled in where that is nothing, each measurement at its place."""
        line = [torch.linspace(0, 1, side).to(y_BCHW) for side in self.size]
        ramps = (torch.ones(self.size).to(y_BCHW), line[0][:, None], line[1])
        white, rows, columns = (self.A_linear(one.expand(len(y_BCHW), 3, *self.size)) for one in ramps)
        if white.shape != y_BCHW.shape:
            raise ValueError(f"measurements are {list(white.shape[1:])} of an image, not {list(y_BCHW.shape[1:])}")
        known = white > FAINT * white.amax(dim=(1, 2, 3), keepdim=True)  # of each image, whatever is beside it
        image = torch.where(known, (y_BCHW + 1) / white.where(known, 1), 0) - 1
        if filled and not bool(known.all()):
            image = fill_in(image, known.to(image))
        if tuple(image.shape[2:]) == self.size:
            return in_colour(image)
        seen = [(ramp / white).where(known, torch.nan)[:, 0].nanmedian(dim=n) for n, ramp in ((2, rows), (1, columns))]
        row, column = ([places(one, side) for one in each.values] for each, side in zip(seen, line, strict=True))
        grids = [torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) for x, y in zip(column, row, strict=True)]
        image, grid = in_colour(image), torch.stack(grids)
        return F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=True)


def in_colour(y_BCHW: Tensor) -> Tensor:
    """Three channels: the measurement's own, or their mean."""
    return y_BCHW if y_BCHW.shape[1] == 3 else y_BCHW.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def places(seen_h: Tensor, line_H: Tensor) -> Tensor:
    """[H] where an image's lines lie among a measurement's, from -1 (the first) to 1 (the last).

    `seen_h` is the place, 0 … 1 of the image, at which each line of the measurement looks; `line_H` has those of the
    image's lines.
    """
    count, index = len(seen_h), torch.arange(len(seen_h)).to(seen_h)
    step = seen_h.diff().nanmedian() if count > 1 else seen_h.new_ones(())  # the median: borders may wrap around
    first = (seen_h - step * index).nanmedian()
    if not bool(step > 0):  # in no order: evenly
        step, first = seen_h.new_tensor(1 / count), seen_h.new_tensor(0.5 / count)
    return 2 * (line_H - first) / step / max(1, count - 1) - 1
