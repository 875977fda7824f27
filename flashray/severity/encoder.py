"""The severity encoder: y ↦ (ẑ, σ̂)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, bundled, hash_weights

_AUTOENCODERS = {cls.__name__: cls for cls in (AutoencoderDC, AutoencoderKL, VQModel)}


class SeverityEncoder(ModelMixin, ConfigMixin):
    """Looks at a degraded image once: the latent ẑ of the clean image, and σ̂, the predicted std of ẑ - z₀.

    The trunk is the prior's own encoder (Flash-Diffusion, severity encoding). The head for σ̂ sees the trunk's last
    features before the projection to latent channels, pooled to their mean and standard deviation: the latents
    themselves say what the encoder believes, not how sure it can be.

    Args:
        autoencoder_class, autoencoder_config: the prior's autoencoder, of which only the encoder is kept.
        scale, shift: the prior's latent scaling, a value a channel or one for all.
        degradation, degradation_settings, noise_std: the family that it was trained on (`noise_std` on [0, 1]).
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
        noise_std: float = 0.05,
        head_width: int = 256,
    ) -> None:
        super().__init__()
        settings = {key: value for key, value in autoencoder_config.items() if not key.startswith("_")}
        autoencoder = _AUTOENCODERS[autoencoder_class].from_config(settings)
        self.encoder = autoencoder.encoder
        self.quant_conv = getattr(autoencoder, "quant_conv", None)
        self.latent_channels = int(settings["latent_channels"])
        features = self.encoder.conv_out.in_channels
        self.head = nn.Sequential(
            nn.LayerNorm(2 * features), nn.Linear(2 * features, head_width), nn.SiLU(), nn.Linear(head_width, 1)
        )
        self.register_buffer("latent_scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("latent_shift", torch.tensor(shift).reshape(1, -1, 1, 1), persistent=False)
        self.sha256 = ""

    @classmethod
    def from_prior(
        cls, prior: LatentPrior, degradation: str, degradation_settings: dict[str, Any], noise_std: float
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

    def forward(self, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ_BCHW, σ̂_B) of measurements in [-1, 1]; ẑ in the prior's unit-variance latents, σ̂ > 0."""
        z_hat, pooled = self.trunk(y_BCHW)
        return z_hat, nn.functional.softplus(self.head(pooled)).squeeze(1)

    def trunk(self, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ_BCHW, [B, 2F] mean and standard deviation over space of the encoder's last F features)."""
        seen: list[Tensor] = []
        handle = self.encoder.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            latent = self.encoder(y_BCHW)
        finally:
            handle.remove()
        if self.quant_conv is not None:
            latent = self.quant_conv(latent)
        latent = latent[:, : self.latent_channels]  # a KL encoder gives mean and log-variance; the mean is the mode
        z_hat = (latent - self.latent_shift) * self.latent_scale
        features = seen[0].flatten(2).float()
        return z_hat, torch.cat([features.mean(dim=2), features.std(dim=2)], dim=1)


def load_severity_encoder(source: str, device: str | torch.device = "cpu") -> SeverityEncoder:
    """Load a severity encoder for inference.

    Args:
        source: `bundled:<degradation>` or a folder written by `SeverityEncoder.save_pretrained`.

    Raises:
        ConfigError: if there is none, with the bundled ones listed.
    """
    folder = bundled("severity", source.removeprefix("bundled:")) if source.startswith("bundled:") else Path(source)
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(f"bundled:{path.parent.name}" for path in bundled("severity").glob("*/config.json")))
        raise ConfigError(
            f"severity encoder {source}: not found; bundled are {known or 'none'}, or name a saved folder"
        )
    found = json.loads((folder / "config.json").read_text()).get("_class_name")
    if found != SeverityEncoder.__name__:
        raise ConfigError(
            f"severity encoder {source}: the folder holds a {found}; train one with jobs/train_severity.py"
        )
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ConfigError(
            f"severity encoder {folder}: {SAFETENSORS_WEIGHTS_NAME} is missing; save_pretrained writes it"
        )
    model = SeverityEncoder.from_pretrained(
        folder, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False
    )
    model.sha256 = hash_weights(folder)
    return model.to(device).eval().requires_grad_(False)
