from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashray.errors import ConfigError
from flashray.prior import load_prior
from flashray.severity import SeverityEncoder, load_severity_encoder
from tests.support.models import AUTOENCODERS, SIDE, dc, save_pipeline


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_new_encoder_believes_what_the_prior_encodes(kind: str, y: torch.Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, AUTOENCODERS[kind]())))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {"std": [0.3, 3.0]}, 0.05).eval()
    z_hat, sigma_hat = encoder(y)
    torch.testing.assert_close(z_hat, prior.encode(y), rtol=1e-5, atol=1e-6)
    assert sigma_hat.shape == (3,)
    assert (sigma_hat > 0).all()
    assert torch.isfinite(sigma_hat).all()
    assert encoder.degradation == "gaussian_blur"


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_saved_and_loaded_it_answers_the_same(kind: str, y: torch.Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path / "prior", AUTOENCODERS[kind]())))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {"std": [0.5, 2.0]}, 0.02).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    assert [path.suffix for path in (tmp_path / "encoder").iterdir() if path.suffix != ".json"] == [".safetensors"]
    loaded = load_severity_encoder(str(tmp_path / "encoder"))
    for ours, theirs in zip(loaded(y), encoder(y), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.config.degradation_settings == {"std": [0.5, 2.0]}
    assert loaded.config.noise_std == 0.02
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert len(loaded.sha256) == 64
    assert torch.equal(SeverityEncoder.from_pretrained(tmp_path / "encoder").eval()(y)[0], encoder(y)[0])


def test_the_hash_follows_the_weights(tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path / "prior", dc())))
    torch.manual_seed(0)
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05)
    for name in ("one", "same"):
        encoder.save_pretrained(tmp_path / name)
    with torch.no_grad():
        encoder.head[1].bias += 1e-3
    encoder.save_pretrained(tmp_path / "other")
    one, same, other = (load_severity_encoder(str(tmp_path / name)).sha256 for name in ("one", "same", "other"))
    assert one == same != other


def test_latents_are_scaled_and_shifted_a_channel_at_a_time(y: torch.Tensor, tmp_path: Path):
    folder = save_pipeline(tmp_path / "prior", dc())
    (folder / "latent_statistics.json").write_text('{"mean": [0.1, -0.2, 0.3, 0.0], "std": [0.5, 1.0, 2.0, 4.0]}')
    prior = load_prior(str(folder))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05).eval()
    raw = prior.autoencoder.encode(y).latent
    mean, std = (torch.tensor(v)[None, :, None, None] for v in ([0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 4.0]))
    torch.testing.assert_close(encoder(y)[0], (raw - mean) / std, rtol=1e-5, atol=1e-5)
    encoder.save_pretrained(tmp_path / "encoder")
    assert torch.equal(load_severity_encoder(str(tmp_path / "encoder"))(y)[0], encoder(y)[0])


def test_answers_do_not_depend_on_the_batch(y: torch.Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, dc())))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05).eval()
    z_hat, sigma_hat = encoder(y)
    for n in range(len(y)):
        z_alone, sigma_alone = encoder(y[n : n + 1])
        torch.testing.assert_close(z_alone[0], z_hat[n], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sigma_alone[0], sigma_hat[n], rtol=1e-5, atol=1e-6)


def test_sigma_learns_from_pooled_features_and_the_trunk_learns_too(y: torch.Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, dc())))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05)
    encoder(y)[1].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.head.parameters())
    conv_in = next(encoder.encoder.parameters())
    assert conv_in.grad is not None
    assert conv_in.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in prior.parameters())  # its own copy


def test_the_latent_error_does_not_move_sigma_alone(tmp_path: Path, y: torch.Tensor):
    """The hook that reads the features leaves nothing behind."""
    encoder = SeverityEncoder.from_prior(load_prior(str(save_pipeline(tmp_path, dc()))), "gaussian_blur", {}, 0.05)
    for _ in range(3):
        encoder(y)
    assert not encoder.encoder.conv_out._forward_pre_hooks


@pytest.mark.parametrize("source", ["bundled:fog", "/no/such/folder"])
def test_a_missing_encoder_is_an_error_that_lists_the_bundled_ones(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assets = tmp_path / "severity"
    for name in ("haze", "gaussian_blur"):
        (assets / name).mkdir(parents=True)
        (assets / name / "config.json").write_text("{}")
    monkeypatch.setattr("flashray.checkpoints.bundled", lambda *parts: tmp_path.joinpath(*parts))
    with pytest.raises(ConfigError, match=rf"{source}: not found; bundled are bundled:gaussian_blur, bundled:haze"):
        load_severity_encoder(source)


def test_an_encoder_without_safetensors_is_a_config_error(tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path / "prior", dc())))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05)
    encoder.save_pretrained(tmp_path / "encoder", safe_serialization=False)
    with pytest.raises(ConfigError, match="safetensors is missing"):
        load_severity_encoder(str(tmp_path / "encoder"))


def test_a_folder_of_another_model_is_a_config_error(tmp_path: Path):
    dc().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a AutoencoderDC"):
        load_severity_encoder(str(tmp_path))
