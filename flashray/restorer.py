"""The restoration of images, composed once: measure → estimate → start → solve → score.

Notebooks, Ray actors, the quote, the contact sheet and the experiments all call it. It is plain torch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from flashray.active_image import Job, Regions, Solved, grid_of, make_problem
from flashray.build import check_choice
from flashray.degradations.base import alike
from flashray.engine import solve
from flashray.errors import ConfigError, ImageError
from flashray.images import Fit, ImageLike, as_image, as_list, as_mask, name_of
from flashray.measurement import Frame, Measurement, Measurer, Photo
from flashray.memory import freed_memory_kept
from flashray.metrics import LPIPS, score_each
from flashray.prior import LatentPrior
from flashray.recipe import Recipe
from flashray.restored import Estimate, Restored
from flashray.seeding import sample_seed
from flashray.severity import Severity, SeverityEncoder, estimate
from flashray.severity.fusion import agree_with_measurement, fuse, grain_of, settled_residual, settled_weight
from flashray.severity.loss import position_error
from flashray.severity.regions import spared_windows, window_sigma
from flashray.windows import LatentGrid, crop, pad_to

BATCH = 16  # images in one call of a network, outside the solver
GRADIENT_MEGAPIXELS = 4.0  # of a photo whose solver keeps gradients; latent_dps takes 3 GB for so many


class Restorer:
    """A recipe with its models on a device.

    Args:
        recipe: checked (`Recipe.check`).
        prior, encoder: loaded, on one device; a full chain needs no encoder.
        measurement: observed takes images as measurements; simulated degrades clean images, each by its key.
        fit: whole keeps an image's size; the others bring it to the prior's.
        slots: windows in one call of the denoiser, and photos in flight.

    Raises:
        ConfigError: when a choice is not one of these, the chain is longer than the prior's, the degradation does not
            fit the squares that `fit` makes, the encoder is missing or belongs to another prior.
    """

    def __init__(
        self,
        recipe: Recipe,
        prior: LatentPrior,
        encoder: SeverityEncoder | None = None,
        measurement: Literal["observed", "simulated"] = "observed",
        fit: Fit = "whole",
        slots: int = 8,
    ) -> None:
        check_choice("measurement", measurement, ("observed", "simulated"))
        check_choice("fit", fit, get_args(Fit))
        self.recipe, self.prior, self.slots = recipe, prior, slots
        self.encoder = encoder if recipe.start.uses_encoder else None
        self.start, self.solver = recipe.start, recipe.solver.make()
        self.degradation = recipe.degradation.make()
        self.schedule = recipe.solver.chain(prior.schedule)
        self.degradation.check_weights()
        if fit != "whole":
            self.degradation.check_size(self.degradation.fixed_size or (prior.sample_size, prior.sample_size))
        if recipe.start.uses_encoder:
            if encoder is None:
                raise ConfigError(f"start.mode {recipe.start.mode} needs a severity encoder; name one")
            encoder.check_prior(prior, recipe.start.severity_encoder)
        simulated = measurement == "simulated"
        self.measurer = Measurer(self.degradation, recipe.degradation.noise_range, simulated, recipe.seed)
        self.reference_frame = Frame(prior.sample_size, fit)
        self.frame = (
            self.reference_frame if simulated else Frame.of_measurements(self.degradation, prior.sample_size, fit)
        )

    @property
    def device(self) -> torch.device:
        return self.prior.device

    @cached_property
    def grid(self) -> LatentGrid:
        """How photos of any size meet the prior's latents and windows."""
        return grid_of(self.prior)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """[C, h, w] of the latent of an image of (H, W) pixels; default the prior's own size."""
        return self._channels, *self.grid.latent_size(size or (self.prior.sample_size, self.prior.sample_size))

    @cached_property
    def _channels(self) -> int:
        size = self.prior.sample_size
        with torch.no_grad():
            return self.prior.encode(torch.zeros(1, 3, size, size, device=self.device)).shape[1]

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the restored image of a given one of (H, W) pixels."""
        taken = self.frame.size_of(size)
        return taken if self.measurer.simulated else self.degradation.image_size(taken)

    def check_photo(self, size: tuple[int, int]) -> None:
        """Raise ImageError if the recipe cannot restore an image of (H, W) pixels."""
        height, width = size
        windows = len(self.grid.windows(size))
        if self.start.formula == "paper" and self.start.uses_encoder and windows > 1:
            raise ImageError(
                f"the image has {width} x {height} pixels and {windows} windows, and start.formula paper is for images "
                "of one window; take start.formula schedule, or fit: resize"
            )
        if self.solver.needs_gradient and height * width > GRADIENT_MEGAPIXELS * 1e6:
            raise ImageError(
                f"the image has {width} x {height} pixels, and solver {self.solver.name} keeps gradients, which takes "
                f"too much memory beyond {GRADIENT_MEGAPIXELS:g} megapixels; take solver proximal, or fit: resize"
            )

    def batch_size(self, size: tuple[int, int], count: int = BATCH) -> int:
        """How many images of (H, W) pixels have the pixels of `count` images of the prior's size; at least 1."""
        return max(1, count * self.prior.sample_size**2 // (size[0] * size[1]))

    def photo(
        self,
        key: str,
        image_CHW: Tensor,
        given: Mapping[str, float | Tensor] | None = None,
        noise_std: float | None = None,
        mask_1HW: Tensor | None = None,
    ) -> Photo:
        """An image that can be measured, in the restorer's frame.

        Parameters that are not given are the severity encoder's estimates, where it predicts all that are missing.

        Raises:
            ImageError: as `Measurer.photo` does, and for values that are not finite or no floating-point numbers.
        """
        image = image_CHW.float()
        if not (image_CHW.is_floating_point() and torch.isfinite(image).all()):  # else σ̂ is NaN, and fusion hides it
            raise ImageError("the image has values that are no finite floating-point numbers")
        x, values = self.frame.take(image), dict(given or {})
        missing, seen = self.measurer.missing(values, noise_std, mask_1HW), x
        if missing == ["noise_std"] and self.encoder is not None:  # its operator is known: as `estimate` sees it
            seen = self.measure([self.measurer.photo(key, x, values, 0.0, mask_1HW)]).seen_BCHW[0]
        guessed = self.predicted(seen, missing)
        noise_std = guessed.pop("noise_std", noise_std)
        photo = self.measurer.photo(key, x, values | guessed, noise_std, mask_1HW)
        return dataclasses.replace(photo, estimated=bool(missing) and bool(guessed or noise_std is not None))

    @torch.no_grad()
    def predicted(self, x_CHW: Tensor, names: Sequence[str]) -> dict[str, float]:
        """The severity encoder's estimates of these parameters of an image as it sees one (`Measurement.seen_BCHW`).

        {} unless it predicts them all.
        """
        if not names or self.encoder is None or not set(names) <= set(self.encoder.parameter_names):
            return {}
        size = self.grid.valid_size((x_CHW.shape[1], x_CHW.shape[2]))  # a whole window's borders would count as photo
        x = pad_to(x_CHW[None].to(self.device), (self.grid.factor * size[0], self.grid.factor * size[1]))
        severity = estimate(self.encoder, self.prior, x)
        return {name: value for name, value in self.encoder.values(severity).items() if name in names}

    def measure(self, photos: Sequence[Photo]) -> Measurement:
        """The measurements of a batch of photos that are `alike`, on the restorer's device."""
        return self.measurer.measure(photos, self.device)

    def estimate(self, measured: Measurement) -> Estimate:
        """(ẑ, σ̂) of measurements: ẑ of the whole images, σ̂ of every window."""
        windows = self.grid.windows(measured.image_size)
        if self.encoder is None:
            return Estimate(None, torch.full((len(measured), len(windows)), torch.nan, dtype=torch.float64))
        severity = estimate(self.encoder, self.prior, self.grid.pad(measured.seen_BCHW))
        valid = self.grid.valid_size(measured.image_size)
        sigma_BK = torch.stack([window_sigma(sigma_hw, windows, valid) for sigma_hw in severity.sigma_Bhw.cpu()])
        spared_BK, fusion = None, self.recipe.fusion
        if fusion.name == "learned":
            weight_Bhw = settled_weight(severity.weight_Bhw, fusion.radius, fusion.threshold, valid)
            grain_B = grain_of(measured.seen_BCHW, fusion.grain)
            residual = settled_residual(severity.residual_BCHW, fusion.radius, grain_B, self.grid.factor, valid)
            severity = severity._replace(weight_Bhw=weight_Bhw, residual_BCHW=crop(residual, measured.image_size))
            if self.start.mode == "flash":
                spared_BK = torch.stack([spared_windows(one, windows) for one in weight_Bhw.cpu()])
        return Estimate(severity.z_hat_BCHW, sigma_BK, severity, spared_BK)

    def sigma_maps(self, severity: Severity, size: tuple[int, int]) -> Tensor:
        """[B, h, w] σ̂ of the latent positions of images of (H, W) pixels, without the padding, on the CPU."""
        return crop(severity.sigma_Bhw, self.grid.valid_size(size)).cpu()

    def start_steps(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(long start steps, bool fall-backs to the full chain) of σ̂ of any shape, such as [B, K]."""
        step, fallback = self.start.start_step(sigma.flatten(), self.schedule, self.recipe.solver.guided)
        return step.reshape(sigma.shape), fallback.reshape(sigma.shape)

    def begin(
        self,
        measured: Measurement,
        z_hat_BCHW: Tensor | None,
        sigma_hat_B: Tensor,
        start_step: Tensor,
        severity: Severity | None = None,
        samples: int = 1,
    ) -> list[Job]:
        """The engine's jobs: each image with its start latent at its latest start step, `samples` times in a row.

        Args:
            z_hat_BCHW: ẑ; None where no encoder is used.
            sigma_hat_B: σ̂ of the images.
            start_step: [B] of the images, or [B, K] of their windows.
            severity: of `estimate`; its fusion weights and residual are used where the recipe's fusion is learned.
            samples: restorations of each image, with different noise; the first is the same whatever their number.

        Raises:
            ConfigError: for the start formula `paper` and windows that start at different steps.
        """
        if z_hat_BCHW is None:
            shape = self.latent_shape(measured.image_size)
            z_hat_BCHW = torch.zeros(len(measured), *shape, device=self.device)
        start_BK = start_step.reshape(len(measured), -1)
        start_B = start_BK.amax(dim=1)
        adaptive_B = (start_BK < start_B[:, None]).any(dim=1).tolist()
        if self.start.formula == "paper" and any(adaptive_B):
            raise ConfigError("start.formula paper is defined for images of one window; use schedule for larger ones")
        learned = severity if self.recipe.fusion.name == "learned" else None
        residual = None if learned is None or not learned.residual_BCHW.shape[1] else learned.residual_BCHW
        seeds = [[sample_seed(seed, sample) for seed in measured.seeds] for sample in range(samples)]
        z_start = [
            self.start.latent(
                z_hat_BCHW, sigma_hat_B, start_B, self.schedule, torch.tensor(seed_B, device=z_hat_BCHW.device)
            )
            for seed_B in seeds
        ]
        return [
            Job(
                key=measured.keys[b],
                seed=seeds[sample][b],
                y=measured.y_BCHW[b],
                parameters={name: values[b] for name, values in measured.parameters.items()},
                noise_std=float(measured.noise_std_B[b]),
                z_start=z_start[sample][b],
                start_step=int(start_B[b]),
                regions=Regions(start_BK[b], z_hat_BCHW[b]) if adaptive_B[b] else None,
                sigma_hat=float(sigma_hat_B[b]),
                weight=None if learned is None else learned.weight_Bhw[b],
                residual=None if residual is None else residual[b],
                sample=sample,
            )
            for b in range(len(measured))
            for sample in range(samples)
        ]

    def solve(self, jobs: Sequence[Job], on_step: Callable[[int], None] | None = None) -> Iterator[Solved]:
        """Solve the images, `slots` windows at a time; yields each as it finishes. Give those with most steps first.

        Further samples come after all first ones and share no batch with them, so that an image's bytes do not depend
        on the number of its samples.
        """
        chain = (self.prior, self.degradation, self.solver, self.schedule)
        first, further = [job for job in jobs if not job.sample], [job for job in jobs if job.sample]
        for some in filter(None, (first, further)):
            job_of = {(job.key, job.sample): job for job in some}
            for one in solve(*chain, some, self.slots, self.recipe.solver.eta, on_step, self.grid):
                if one.image is None or self.recipe.fusion.name == "none":
                    yield one
                    continue
                started = time.perf_counter()
                image = self.fuse(one.image[None], [job_of[one.key, one.sample]])[0]
                yield dataclasses.replace(one, image=image, seconds=one.seconds + time.perf_counter() - started)

    @torch.no_grad()
    def fuse(self, decoded_BCHW: Tensor, jobs: Sequence[Job]) -> Tensor:
        """The recipe's last word in pixels on decoded images of one size: [B, 3, H, W] in [-1, 1], on the CPU."""
        _, problem = make_problem(self.prior, self.degradation, list(jobs), self.grid)
        decoded = decoded_BCHW.to(self.device).clamp(-1, 1)  # as the engine's images are
        fusion = self.recipe.fusion
        if fusion.name == "operator":
            sigma_hat_B = torch.tensor([job.sigma_hat for job in jobs], device=self.device).nan_to_num(nan=1.0)
            fused = agree_with_measurement(decoded, problem, sigma_hat_B, fusion.decoder_std, fusion.gain)
        elif fusion.name == "learned":
            size = (decoded.shape[2], decoded.shape[3])
            weight = torch.stack([job.weight for job in jobs if job.weight is not None]).to(self.device)
            given = problem.operator.picture(problem.y_BCHW)
            residual = [job.residual for job in jobs if job.residual is not None]
            corrected = given + torch.stack(residual).to(given) if residual else given
            fused = fuse(corrected, decoded, weight, self.grid.factor, size)
        else:
            fused = decoded
        return fused.clamp(-1, 1).cpu()

    @torch.no_grad()
    def decode(self, z_BCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """D(z) of any number of latents, [B, 3, H, W], not clipped; `size` (H, W) cuts off the padding."""
        image = torch.cat([self.prior.decode(z) for z in z_BCHW.split(BATCH)])
        return image if size is None else crop(image, size)

    @torch.no_grad()
    def true_sigma(self, z_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """σ̄: [B] root mean square of the latent error over positions without the padding, given clean images."""
        valid = self.grid.valid_size((x_BCHW.shape[2], x_BCHW.shape[3]))
        z = self.prior.encode(self.grid.pad(x_BCHW.to(self.device)))
        return position_error(crop(z_hat_BCHW, valid), crop(z, valid)).mean(dim=(1, 2)).sqrt()

    @torch.no_grad()
    def score(
        self, candidates: Mapping[str, Tensor], x_BCHW: Tensor, metrics: Sequence[str], lpips: LPIPS | None = None
    ) -> dict[str, Tensor]:
        """Per-image metrics [B] against clean images, named prefix + metric, for each prefix of the candidates."""
        here = {prefix: candidate.to(self.device) for prefix, candidate in candidates.items()}
        return score_each(here, x_BCHW.to(self.device), lpips, metrics)

    @torch.no_grad()
    @freed_memory_kept()
    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        keys: Sequence[str] | None = None,
        noise_std: float | None = None,
        mask: ImageLike | None = None,
        samples: int = 1,
        **parameters: float | Tensor,
    ) -> Restored:
        """Restore images.

        Args:
            images: a path, a PIL picture, an array or a tensor, or a list of them. Arrays are uint8 [H, W, 3] or
                [H, W]; tensors are floating point [3, H, W] (or [B, 3, H, W]) in [-1, 1], up to ±3 where they are noisy
                measurements of a known degradation. `fit` decides what becomes of other sizes than the prior's.
            keys: names of the images; the noise of an image follows from its name. Default: the path, else the
                position.
            noise_std: of the measurements, on the [0, 1] scale; default: the recipe's, if that is one number.
            mask: for inpainting families: white where a pixel is known.
            samples: restorations of each image, each with noise of its own; the first is what one alone would be.
            parameters: the degradation's parameters, such as blur_std=1.5; the same for all images. Of the family
                deepinv they are tensors.

        Raises:
            ValueError: for an image of the wrong shape, range or type, or unknown parameters.

        An image that cannot be read or solved has an error in the result; the others are restored.
        """
        given = as_list(images)
        names = list(keys) if keys is not None else [name_of(one, n) for n, one in enumerate(given)]
        if keys is None and len(set(names)) != len(names):
            again = next(name for n, name in enumerate(names) if name in names[:n])
            raise ValueError(f"{again} is given twice; give it once, or give keys, from which the noise follows")
        if len(names) != len(given) or len(set(names)) != len(names):
            raise ValueError(f"keys: give {len(given)} different names, one an image")
        unknown = sorted(set(parameters) - set(self.degradation.parameter_names))
        if unknown:
            known = ", ".join(self.degradation.parameter_names) or "none"
            raise ValueError(f"{', '.join(unknown)}: not a parameter of {self.degradation.name}; known: {known}")
        numbers = parameters if self.degradation.name != "deepinv" else {}
        for name, value in (numbers if noise_std is None else {**numbers, "noise_std": noise_std}).items():
            if not isinstance(value, Real | Tensor) or torch.as_tensor(value).ndim:
                raise ValueError(f"{name} is {value!r}; give one number, and call once for each image that has its own")
        if noise_std is not None and not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std is {noise_std}; give a finite number ≥ 0, on the [0, 1] scale")
        told = [*parameters, *(["noise_std"] if noise_std is not None else [])]
        if told and self.degradation.unknown and not self.measurer.simulated:
            raise ValueError(f"{', '.join(told)}: {self.degradation.name} is unknown damage, and takes none")
        if mask is not None and not self.degradation.takes_mask:
            raise ValueError(f"mask: {self.degradation.name} does not take a mask")
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples is {samples!r}; give a whole number, at least 1")
        errors: dict[str, str] = {}
        photos: list[Photo] = []
        reach = 1.0 if self.measurer.simulated or self.degradation.unknown else 3.0  # noise leads out of [-1, 1]
        for name, one in zip(names, given, strict=True):
            try:
                image = as_image(one, reach)
                self.check_photo(self.image_size((image.shape[1], image.shape[2])))
                known_1HW = None if mask is None else self.frame.take_mask(as_mask(mask), image)
                photos.append(self.photo(name, image, parameters, noise_std, known_1HW))
            except (ImageError, OSError) as error:
                errors[name] = str(error)
        return self.restore_photos(photos, names, errors, samples)

    @torch.no_grad()
    @freed_memory_kept()
    def restore_photos(
        self,
        photos: Sequence[Photo],
        names: Sequence[str] | None = None,
        errors: Mapping[str, str] | None = None,
        samples: int = 1,
    ) -> Restored:
        """Restore photos; the result is in the order of `names` (default: the order of the photos)."""
        names = [photo.key for photo in photos] if names is None else names
        parts = [self.measure(batch) for batch in self._batches(photos)]
        return self.restore_measured([(one, self.estimate(one)) for one in parts], names, errors, samples)

    def _batches(self, photos: Sequence[Photo]) -> Iterator[list[Photo]]:
        """Photos that are `alike`, as many at a time as have the pixels of `BATCH` images of the prior's size."""
        for some in alike(photos, lambda photo: (photo.x, photo.parameters)):
            _, height, width = some[0].x.shape
            count = self.batch_size((height, width))
            yield from (some[first : first + count] for first in range(0, len(some), count))

    @torch.no_grad()
    def restore_measured(
        self,
        parts: Sequence[tuple[Measurement, Estimate]],
        names: Sequence[str] | None = None,
        errors: Mapping[str, str] | None = None,
        samples: int = 1,
    ) -> Restored:
        """Restore batches of measurements with their estimates; the result is in the order of `names`."""
        keys = [key for measured, _ in parts for key in measured.keys]
        if len(set(keys)) != len(keys):
            raise ValueError("keys: two photos have the same, and one would be given for both; give different ones")
        names = keys if names is None else names
        failed = dict(errors or {})
        jobs: list[Job] = []
        sigma: dict[str, float] = {}
        fallback: dict[str, bool] = {}
        maps: dict[str, Tensor] = {}
        for measured, found in parts:
            step_BK, fallback_BK = self.start_steps(found.start_sigma_BK)
            jobs += self.begin(measured, found.z_hat_BCHW, found.sigma_hat_B, step_BK, found.severity, samples)
            sigma |= dict(zip(measured.keys, found.sigma_hat_B.tolist(), strict=True))
            fallback |= dict(zip(measured.keys, fallback_BK.any(dim=1).tolist(), strict=True))
            if found.severity is not None:
                maps |= dict(zip(measured.keys, self.sigma_maps(found.severity, measured.image_size), strict=True))
        jobs.sort(key=lambda job: -job.start_step)
        solved: dict[str, dict[int, Solved]] = {}
        for one in self.solve(jobs):
            solved.setdefault(one.key, {})[one.sample] = one
        found_in_order = [[solved[name][n] for n in range(samples)] if name in solved else [] for name in names]
        failed |= {one.key: one.error for each in found_in_order for one in each if one.error is not None}
        images = [[one.image for one in each if one.image is not None] for each in found_in_order]
        whole = [some if len(some) == samples else None for some in images]
        return Restored(
            images=[None if some is None else some[0] for some in whole],
            sigma_hat=[sigma.get(name, float("nan")) for name in names],
            nfe=[each[0].nfe if each else 0.0 for each in found_in_order],
            fallback=[fallback.get(name, False) for name in names],
            seconds=[sum(one.seconds for one in each) for each in found_in_order],
            errors=[failed.get(name) for name in names],
            sigma_maps=[maps.get(name) for name in names],
            samples=whole,
        )
