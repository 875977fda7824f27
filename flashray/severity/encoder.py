"""The severity encoder: y ↦ (ẑ, σ̂)."""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from flashray.build import noise_range
from flashray.checkpoints import load_saved
from flashray.errors import ConfigError
from flashray.prior import LatentPrior

_AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderDC, AutoencoderKL, VQModel)}


class SeverityEncoder(ModelMixin, ConfigMixin):
    """Predicts from a degraded image the latent ẑ of the clean image, and σ̂, the standard deviation of ẑ - z₀.

    The trunk is the prior's own encoder (Flash-Diffusion, severity encoding). The input of the head for σ̂ are the
    trunk's features at every resolution and the last ones before the projection to latent channels, pooled to their
    mean and standard deviation. The latents alone would not do: they hold the estimate and not its uncertainty, and the
    sharpness and noise of an image are visible in the features of high resolution.

    Args:
        autoencoder_class, autoencoder_config: the prior's autoencoder, of which only the encoder is kept.
        scale, shift: the prior's latent scaling, one value a channel or one for all.
        degradation, degradation_settings, noise_std: the family that it was trained on (`noise_std` on [0, 1],
            one number or [low, high]).
        head_width: hidden units of the head.
    """

    latent_scale: Tensor
    latent_shift: Tensor

    @register_to_config
    def __init__(
        self,
        autoencoder_class: str,
        autoencoder_config: dict[str, Any],
        scale: list[float],
        shift: list[float],
        degradation: str,
        degradation_settings: dict[str, Any] | None = None,
        noise_std: float | list[float] = 0.05,
        head_width: int = 256,
    ) -> None:
        super().__init__()
        settings = {key: value for key, value in autoencoder_config.items() if not key.startswith("_")}
        autoencoder = _AUTOENCODERS[autoencoder_class].from_config(settings)
        self.encoder = autoencoder.encoder
        self.quant_conv = getattr(autoencoder, "quant_conv", None)
        self.latent_channels = int(settings["latent_channels"])
        features = self._pooled_features()
        first = nn.Linear(features, head_width)
        nn.init.normal_(first.weight)  # for inputs of length 1
        self.head = nn.Sequential(Standardize(features), first, nn.SiLU(), nn.Linear(head_width, 1))
        self.register_buffer("latent_scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("latent_shift", torch.tensor(shift).reshape(1, -1, 1, 1), persistent=False)
        self.sha256 = ""

    @classmethod
    def from_prior(
        cls, prior: LatentPrior, degradation: str, degradation_settings: dict[str, Any], noise_std: float | list[float]
    ) -> SeverityEncoder:
        """A new severity encoder whose trunk holds the prior's encoder weights."""
        config = {key: value for key, value in dict(prior.autoencoder.config).items() if not key.startswith("_")}
        model = cls(
            autoencoder_class=type(prior.autoencoder).__name__,
            autoencoder_config=json.loads(json.dumps(config)),
            scale=prior.scale.flatten().tolist(),
            shift=prior.shift.flatten().tolist(),
            degradation=degradation,
            degradation_settings=degradation_settings,
            noise_std=noise_std,
        )
        model.encoder.load_state_dict(prior.autoencoder.encoder.state_dict())
        if model.quant_conv is not None:
            model.quant_conv.load_state_dict(prior.autoencoder.quant_conv.state_dict())
        return model.to(prior.device)

    @property
    def degradation(self) -> str:
        """The name of the degradation family that this encoder was trained on."""
        return str(self.config.degradation)

    @property
    def noise_range(self) -> tuple[float, float]:
        """(low, high) of the noise_std, on the [0, 1] scale, that this encoder was trained with."""
        return noise_range(self.config.noise_std)

    def check_prior(self, prior: LatentPrior, name: str) -> None:
        """Raise ConfigError if this encoder was trained for another prior's latents.

        Args:
            name: the encoder's name in errors.
        """
        pairs = ((self.latent_scale, prior.scale), (self.latent_shift, prior.shift))
        if not all(one.shape == other.shape and one.allclose(other.to(one)) for one, other in pairs):
            raise ConfigError(
                f"severity encoder {name} was trained for another prior than {prior.name}: their latents are scaled "
                "differently; train one with flashray train severity, or name the prior that it belongs to"
            )

    def forward(self, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ_BCHW, σ̂_B) of measurements in [-1, 1]; ẑ in the prior's unit-variance latents, σ̂ > 0."""
        z_hat, pooled = self.trunk(y_BCHW)
        with torch.autocast(y_BCHW.device.type, enabled=False):  # bfloat16 would quantise σ̂
            return z_hat, nn.functional.softplus(self.head(pooled.float())).squeeze(1)

    def trunk(self, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ_BCHW, [B, 2F] mean and standard deviation over space of the encoder's F features of all resolutions)."""
        latent, feature = self._encode(y_BCHW)
        if self.quant_conv is not None:
            latent = self.quant_conv(latent)
        latent = latent[:, : self.latent_channels]  # a KL encoder gives mean and log-variance; the mean is used
        z_hat = (latent - self.latent_shift) * self.latent_scale
        flat = [feature_BCHW.flatten(2).float() for feature_BCHW in feature]
        return z_hat, torch.cat([value.mean(dim=2) for value in flat] + [value.std(dim=2) for value in flat], dim=1)

    def _encode(self, y_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's output, and its features from the first to the last resolution."""
        feature: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda module, inputs, output: feature.append(output))
            for block in self.encoder.down_blocks[:-1]
        ]
        last = self.encoder.conv_out.register_forward_pre_hook(lambda module, inputs: feature.append(inputs[0]))
        try:
            return self.encoder(y_BCHW), feature
        finally:
            for handle in [*handles, last]:
                handle.remove()

    @torch.no_grad()
    def _pooled_features(self) -> int:
        side = 2 ** (len(self.encoder.down_blocks) + 2)
        here = self.encoder.conv_out.weight.device  # diffusers builds models on the meta device before it loads them
        _, feature = self._encode(torch.zeros(1, 3, side, side, device=here))
        return 2 * sum(value.shape[1] for value in feature)


@torch.no_grad()
def estimate(encoder: SeverityEncoder, prior: LatentPrior, seen_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(ẑ_BCHW, σ̂_B) in float32 of measurements in [-1, 1] at the images' size, computed in the prior's precision."""
    with prior.autocast():
        z_hat, sigma_hat = encoder(seen_BCHW)
    return z_hat.float(), sigma_hat.float()


class Standardize(nn.Module):
    """(x - mean) / std of every feature, over √F; the statistics are those of the first batches of training.

    They are fixed from then on, so that no output depends on its batch, and averaged weights are used with the
    statistics that they were trained with. Dividing by √F keeps the vector's length near 1 for any width, because a
    step of Adam moves all F weights at once.
    """

    mean: Tensor
    std: Tensor
    seen: Tensor

    def __init__(self, features: int, batches: int = 100) -> None:
        super().__init__()
        self.batches = batches
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.training and len(x_BF) > 1 and self.seen < self.batches:
            self.see(x_BF.detach())
        return (x_BF - self.mean) / (self.std.clamp(min=1e-3) * x_BF.shape[1] ** 0.5)

    def see(self, x_BF: Tensor) -> None:
        """Add a batch to the statistics."""
        self.seen += 1
        self.mean.lerp_(x_BF.mean(dim=0), 1 / self.seen)
        self.std.lerp_((x_BF - self.mean).square().mean(dim=0).sqrt(), 1 / self.seen)


def load_severity_encoder(source: str, device: str | torch.device = "cpu") -> SeverityEncoder:
    """Load a severity encoder for inference.

    Args:
        source: `bundled:<degradation>` or a folder written by `SeverityEncoder.save_pretrained`.

    Raises:
        ConfigError: if there is none, with the bundled ones listed.
    """
    return load_saved(
        SeverityEncoder, source, device, kind="severity encoder", room="severity", job="flashray train severity"
    )
