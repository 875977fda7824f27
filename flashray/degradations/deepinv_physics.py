"""A Physics of deepinv: imported, made from a recipe's words, and tried before any work."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashray.build import nearest
from flashray.errors import ConfigError

STEP = 0.01  # of the differences that a derivative is compared with
DOT_TOLERANCE, SLOPE_TOLERANCE = 1e-3, 0.05  # in float32; what is wrong is wrong by about 1


def library() -> Any:
    """The package deepinv, imported here alone."""
    try:
        import deepinv
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ConfigError(
            f"degradation deepinv, physics: it needs the package deepinv, which cannot be imported ({error}); give pip "
            "flashray[deepinv] and a torchvision that fits torch"
        ) from error
    return deepinv


def make_physics(given: Any) -> Any:
    """A class of deepinv.physics by its name, {name: {argument: value}}, or a copy of a Physics."""
    if hasattr(given, "noise_model"):
        return given.clone().float()
    name, arguments = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, {})
    if not (isinstance(name, str) and name and isinstance(arguments, Mapping)):
        raise ConfigError(
            f"degradation deepinv, physics: {given!r} is none; give the name of a class of deepinv.physics, "
            "{name: {argument: value}}, or a Physics"
        )
    kinds = library().physics
    known = {key: one for key, one in vars(kinds).items() if inspect.isclass(one) and issubclass(one, kinds.Physics)}
    if name not in known:
        raise ConfigError(f"degradation deepinv: physics {name!r} is no class of deepinv.physics{nearest(name, known)}")
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("error", message=".* are ignored")  # what deepinv says of unknown arguments
            torch.manual_seed(0)  # a mask that is drawn is the same in every process
            return known[name](**{key: argument(value) for key, value in arguments.items()})
    except Exception as error:
        raise ConfigError(
            f"degradation deepinv: physics {name} refuses {dict(arguments)}: {error}; give other arguments"
        ) from error


def argument(value: Any) -> Any:
    """A YAML value for deepinv: lists of lists are tensors, {function: {…}} is a call in deepinv.physics.functional."""
    if isinstance(value, Mapping):
        ((name, arguments),) = value.items()
        return getattr(library().physics.functional, name)(**{key: argument(one) for key, one in arguments.items()})
    if not isinstance(value, list) or not any(isinstance(one, list) for one in value):
        return tuple(value) if isinstance(value, list) else value
    tensor = torch.tensor(value, dtype=torch.float32)
    return tensor[None, None] if tensor.ndim == 2 else tensor


def parameters_of(physics: Any) -> dict[str, Tensor]:
    """The tensors that may differ by image: those that A and update_parameters name, or all where they name none."""
    found: dict[str, Tensor] = {}
    for part in physics.modules():
        if isinstance(part, library().physics.Physics):
            named = {name for call in (part.A, part.update_parameters) for name in inspect.signature(call).parameters}
            tensors = {name: one for name, one in part.named_buffers(recurse=False) if not name.startswith("_")}
            found |= {name: one for name, one in tensors.items() if name in named} or tensors
    return found


def check_physics(physics: Any, size: tuple[int, int], linear: bool) -> None:
    """Raise ConfigError for a physics that no solver can use; it is tried on images of size (H, W)."""
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.rand(1, 3, *size, generator=generator) / 2 + shift for shift in (0.25, -0.25))
    y = measure(physics, x)
    check_measurement(physics, y, 1)
    with torch.random.fork_rng(devices=[]):
        shapes = [list(measure(physics, x, noise=True).shape[1:]) for _ in "ab"]
    if shapes != 2 * [list(y.shape[1:])]:
        raise refused(physics, f"measures {list(y.shape[1:])} without noise and {shapes} with it; give a fixed shape")
    if not torch.equal(y, measure(physics, x)):
        raise refused(physics, "measures the same image differently each time; give one without randomness in A")
    v = torch.randn(y.shape, generator=generator)
    near = [] if linear else [measure(physics, x + step * d) for step in (-STEP, STEP)]
    ahead = measure(physics, d) if linear else (near[1] - near[0]) / (2 * STEP)
    try:
        with torch.no_grad():
            back = physics.A_adjoint(v) if linear else physics.A_vjp(x, v)
            forward = ahead if linear else torch.func.jvp(physics.A, (x,), (d,))[1]
        wrong = torch.stack([(ahead * v).sum() - (d * back).sum(), ((ahead - forward) * v).sum()]).abs().max()
    except Exception as error:
        raise refused(physics, f"has no {'adjoint' if linear else 'derivative'}: {error}; give another") from error
    share = float(wrong / ahead.norm().clamp(min=1e-12))  # <A d, v> of white noise v is about as large as A d
    if not share <= (DOT_TOLERANCE if linear else SLOPE_TOLERANCE):
        what = "A_adjoint is not A's adjoint" if linear else "A is not differentiable, or A_vjp is wrong"
        raise refused(physics, f"fails the dot test by {share:.2g}: {what}; give another")


def check_measurement(physics: Any, y: Any, count: int) -> None:
    """Raise ConfigError unless y is measurements [B, C, h, w] of so many images."""
    if not isinstance(y, Tensor) or y.ndim != 4 or len(y) != count or not y.is_floating_point():
        found = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise refused(physics, f"measures {found}; give one with real measurements [B, C, h, w]")


@torch.no_grad()
def measure(physics: Any, x_BCHW: Tensor, noise: bool = False) -> Any:
    """A(x) of images in [0, 1], or with noise; ConfigError with the physics' own words where it cannot."""
    try:
        return physics(x_BCHW) if noise else physics.A(x_BCHW)
    except Exception as error:
        height, width = x_BCHW.shape[2:]
        raise refused(physics, f"cannot measure an image of {width} x {height}: {error}; give size") from error


def refused(physics: Any, why: str) -> ConfigError:
    return ConfigError(f"degradation deepinv: physics {type(physics).__name__} {why}")
