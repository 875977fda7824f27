"""Overlapping windows of a latent of any size, so that a denoiser of one size serves photos of all sizes.

The noise estimate of a latent z is ε̂ = Σ_k w_k ε_k / Σ_k w_k over its windows k, at every step: neighbouring windows
agree all the way down and not only at the end (docs/architecture.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flashray.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]  # (z_BCHW, timestep_B) → ε_BCHW, for z of one window


def starts_of(length: int, side: int) -> list[int]:
    """The first positions of the windows of `side` that cover `length` ≥ side: stride ¾ side, the last one shifted in.

    ConfigError if length < side; a photo is padded to at least one window (`LatentGrid.padded_size`).
    """
    if not 1 <= side <= length:
        raise ConfigError(f"a latent of {length} positions to a side is smaller than a window of {side}; pad the photo")
    stride = max(1, 3 * side // 4)
    count = -(-(length - side) // stride) + 1
    return [min(k * stride, length - side) for k in range(count)]


def bump(side: int) -> Tensor:
    """[side] float64 sin²(π (i + ½)/side): smooth, symmetric, positive everywhere."""
    return torch.sin(math.pi * (torch.arange(side, dtype=torch.float64) + 0.5) / side).square()


@dataclass(frozen=True)
class Axis:
    """The windows along one side of a latent.

    Attributes:
        side: positions to a side of a window.
        starts_K: [K] long, the windows' first positions.
        source_ML: [M, L] long: position l of the latent is place source % side of window source // side; M windows at
            most share a position.
        share_ML: [M, L] float64, w_k / Σ_k w_k there; 0 where fewer than M windows meet. Where one window is alone its
            share is exactly 1.
    """

    side: int
    starts_K: Tensor
    source_ML: Tensor
    share_ML: Tensor

    @classmethod
    def of(cls, length: int, side: int) -> Axis:
        starts = starts_of(length, side)
        weight = bump(side).tolist()
        meeting: list[list[tuple[int, float]]] = [[] for _ in range(length)]
        for k, start in enumerate(starts):
            for i in range(side):
                meeting[start + i].append((k * side + i, weight[i]))
        most = max(len(sources) for sources in meeting)
        source = torch.zeros(most, length, dtype=torch.long)
        share = torch.zeros(most, length, dtype=torch.float64)
        for position, sources in enumerate(meeting):
            total = sum(w for _, w in sources)
            for m, (place, w) in enumerate(sources):
                source[m, position], share[m, position] = place, w / total
        return cls(side, torch.tensor(starts), source, share)

    @property
    def covered_Ks(self) -> Tensor:
        """[K, side] long, the positions that each window covers."""
        return self.starts_K[:, None] + torch.arange(self.side)

    def fuse(self, value: Tensor, dim: int) -> Tensor:
        """Replace the dimension of K · side windowed places by one of L positions: Σ_m share_m · value[source_m]."""
        shape = [1] * value.ndim
        shape[dim] = -1
        fused = None
        for source_L, share_L in zip(self.source_ML, self.share_ML, strict=True):
            term = value.index_select(dim, source_L.to(value.device)) * share_L.to(value).reshape(shape)
            fused = term if fused is None else fused + term
        assert fused is not None
        return fused


@dataclass(frozen=True)
class Windows:
    """The windows of a latent of one size, in reading order."""

    rows: Axis
    columns: Axis

    @staticmethod
    @lru_cache(maxsize=256)
    def of(size: tuple[int, int], side: int) -> Windows:
        """The windows of side `side` of latents of size (h, w); ConfigError if a side is shorter than a window."""
        return Windows(Axis.of(size[0], side), Axis.of(size[1], side))

    def __len__(self) -> int:
        return len(self.rows.starts_K) * len(self.columns.starts_K)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.rows.source_ML.shape[1], self.columns.source_ML.shape[1]

    def cut(self, z_CHW: Tensor) -> Tensor:
        """[K, C, side, side] windows of a latent [C, h, w]."""
        if len(self) == 1:
            return z_CHW[None]
        row = self.rows.covered_Ks[:, None, :, None].to(z_CHW.device)
        column = self.columns.covered_Ks[None, :, None, :].to(z_CHW.device)
        return z_CHW[:, row, column].flatten(1, 2).transpose(0, 1)

    def fuse(self, epsilon_KCss: Tensor) -> Tensor:
        """Σ_k w_k ε_k / Σ_k w_k, [C, h, w]; the one window of a small latent comes back as it is, to the last bit."""
        if len(self) == 1:
            return epsilon_KCss[0]
        side, down, across = self.rows.side, len(self.rows.starts_K), len(self.columns.starts_K)
        grid = epsilon_KCss.unflatten(0, (down, across))  # [down, across, C, s, s]
        strips = self.rows.fuse(grid.permute(1, 2, 0, 3, 4).reshape(across, -1, down * side, side), dim=2)
        return self.columns.fuse(strips.permute(1, 2, 0, 3).flatten(2), dim=2)

    def greatest(self, value_K: Tensor) -> Tensor:
        """[h, w] the greatest value of the windows that cover a position."""
        grid = value_K.reshape(len(self.rows.starts_K), len(self.columns.starts_K))
        down = _greatest(grid, self.rows)  # [h, across]
        return _greatest(down.T, self.columns).T


def _greatest(value_KN: Tensor, axis: Axis) -> Tensor:
    """[L, N] the greatest value over the windows of an axis that cover each position."""
    window_ML = (axis.source_ML // axis.side).to(value_KN.device)
    there_ML = (axis.share_ML > 0).to(value_KN.device)
    window_ML = torch.where(there_ML, window_ML, window_ML[0])
    return value_KN[window_ML].amax(dim=0)


@dataclass(frozen=True)
class LatentGrid:
    """How photos of any size meet a prior."""

    factor: int  # pixels to a side of a latent position
    side: int  # latent positions to a side of a window, the size that the denoiser was trained on

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels, multiples of the latent factor and at least one window."""
        height, width = (max(-(-length // self.factor), self.side) * self.factor for length in size)
        return height, width

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent of a photo of (H, W) pixels."""
        height, width = self.padded_size(size)
        return height // self.factor, width // self.factor

    def valid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent positions that hold at least one pixel of the photo."""
        return -(-size[0] // self.factor), -(-size[1] // self.factor)

    def windows(self, size: tuple[int, int]) -> Windows:
        """The windows of a photo of (H, W) pixels."""
        return Windows.of(self.latent_size(size), self.side)

    def pad(self, x_BCHW: Tensor) -> Tensor:
        """The photos with their last row and column repeated up to the padded size; whole ones are left as they are."""
        return pad_to(x_BCHW, self.padded_size((x_BCHW.shape[-2], x_BCHW.shape[-1])))

    def norm_scale(self, size: tuple[int, int]) -> float:
        """√(latent positions that hold the photo / those of one window), exactly 1 at the prior's own size.

        A gradient solver moves each element by the gradient of a residual's norm, which falls as 1/√elements; this
        keeps what a step size means. The padding has no residual, and does not count.
        """
        height, width = self.valid_size(size)
        return math.sqrt(height * width / self.side**2)


def pad_to(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat the last row and column until images are of `size` (H, W) ≥ their own."""
    down, right = size[0] - x_BCHW.shape[-2], size[1] - x_BCHW.shape[-1]
    if down == 0 and right == 0:
        return x_BCHW
    return F.pad(x_BCHW, (0, right, 0, down), mode="replicate")


def crop(x_BCHW: Tensor, size: tuple[int | None, int | None]) -> Tensor:
    """The first (H, W) pixels, or all: what `pad_to` has added goes."""
    return x_BCHW[..., : size[0], : size[1]]


@dataclass(frozen=True)
class View:
    """A latent at its step, as the denoiser is to see it."""

    z_CHW: Tensor  # the latent, [C, h, w]
    timestep: Tensor  # 0-d long, the denoiser's time
    windows: Windows  # of the latent's size
    active_K: Tensor | None = None  # [K] bool, the windows that the denoiser looks at; None for all
    # what the other windows say: (z - √ᾱ ẑ)/√(1-ᾱ), the noise of which ẑ is the rest; None where all are active
    vote_CHW: Tensor | None = None

    def seen(self) -> Tensor:
        """[A, C, side, side] the active windows."""
        windows_KCss = self.windows.cut(self.z_CHW)
        return windows_KCss if self.active_K is None else windows_KCss[self.active_K.to(self.z_CHW.device)]

    def fused(self, epsilon_ACss: Tensor) -> Tensor:
        """ε̂ of the whole latent from the denoiser's answers for the active windows."""
        if self.active_K is None or bool(self.active_K.all()):
            return self.windows.fuse(epsilon_ACss)
        assert self.vote_CHW is not None, "windows that are not active need a vote"
        everyone = self.windows.cut(self.vote_CHW)
        place_A = self.active_K.nonzero().flatten().to(everyone.device)
        return self.windows.fuse(everyone.index_copy(0, place_A, epsilon_ACss))


def vote(z: Tensor, z_hat: Tensor, alpha: Tensor) -> Tensor:
    """(z - √ᾱ ẑ)/√(1-ᾱ)."""
    return (z - alpha.sqrt() * z_hat) / (1 - alpha).sqrt()


def windowed_epsilon(denoise: Denoise, views: Sequence[View], slots: int) -> tuple[list[Tensor], list[int]]:
    """ε̂ of each latent, whatever their sizes, with the windows of all of them in batches of at most `slots`.

    The order is that of the latents and of their windows, and no result depends on how they fall into batches beyond
    rounding. Where a gradient is wanted and one batch does not hold all windows, each batch is computed again on the
    way back, so that memory is that of one.

    Returns:
        The [C, h, w] estimates, and the number of windows of each batch.
    """
    seen = [view.seen() for view in views]
    window_NCss = torch.cat(seen)
    timestep_N = torch.cat([view.timestep.expand(len(some)) for view, some in zip(views, seen, strict=True)])
    batches = list(zip(window_NCss.split(slots), timestep_N.split(slots), strict=True)) if len(window_NCss) else []
    if window_NCss.requires_grad and len(batches) > 1:
        answers = [
            checkpoint(denoise, window, timestep, use_reentrant=False, preserve_rng_state=False)
            for window, timestep in batches
        ]
    else:
        answers = [denoise(window, timestep) for window, timestep in batches]
    answer_NCss = torch.cat(answers) if answers else window_NCss
    each = answer_NCss.split([len(some) for some in seen])
    return [view.fused(one) for view, one in zip(views, each, strict=True)], [len(window) for window, _ in batches]
