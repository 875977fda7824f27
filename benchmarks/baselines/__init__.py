"""Baselines: what the paper compares with that restores in one pass.

DPS in pixel space is not of this kind: it is the solver `latent_dps` with a pixel-space prior (flashray.prior).
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.baselines.baseline import Baseline
from benchmarks.baselines.decoded_estimate import Autoencoder, load_autoencoder
from benchmarks.baselines.swinir import SwinIR, load_swinir
from flashray.checkpoints import warn_of_another_family
from flashray.errors import ConfigError
from flashray.prior import LatentPrior

BASELINES: dict[str, Callable[[str, LatentPrior], Baseline]] = {
    "autoencoder": load_autoencoder,
    "swinir": lambda source, prior: load_swinir(source, prior.device),
}

__all__ = ["BASELINES", "Autoencoder", "Baseline", "SwinIR", "load_baseline", "load_swinir"]


def load_baseline(name: str, source: str, prior: LatentPrior, degradation: str) -> Baseline:
    """The baseline of this name, on the prior's device.

    Args:
        source: of `autoencoder`, a severity encoder; of `swinir`, a folder that jobs/train_swinir.py wrote.
        prior: what `autoencoder` decodes with; `swinir` needs none of it but the device.
        degradation: the family that it is asked about; another one than it was trained on is a warning with both names.

    Raises:
        ConfigError: if the name is unknown, with the known ones listed, or the source cannot be loaded.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline {name!r} is not known; known: {', '.join(sorted(BASELINES))}")
    baseline = BASELINES[name](source, prior)
    warn_of_another_family(f"baseline {name} {source}", baseline.degradation, degradation)
    return baseline
