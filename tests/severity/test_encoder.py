from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, load_prior
from flashray.severity import Severity, SeverityEncoder, estimate, load_severity_encoder
from flashray.severity.encoder import LOG_VARIANCE, STRIP_ROWS, mean_over_positions
from tests.support import models
from tests.support.models import AUTOENCODERS, SIDE, dc, save_pipeline, shaken, unet


@pytest.fixture(scope="module")
def y() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> LatentPrior:
    return load_prior(str(save_pipeline(tmp_path_factory.mktemp("prior"), dc())))


def severity_encoder(prior: LatentPrior, **settings: Any) -> SeverityEncoder:
    """One that answers everything there is."""
    return models.severity_encoder(prior, residual=True, **settings)


def difference(one: Severity, other: Severity) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_new_encoder_believes_what_the_prior_encodes(kind: str, y: Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, AUTOENCODERS[kind]())))
    encoder = SeverityEncoder.from_prior(
        prior, "gaussian_blur", {"std": [0.3, 3.0]}, 0.05, widths=(8, 8), blocks=(1, 1)
    )
    severity = estimate(encoder, prior, y)
    assert torch.equal(severity.z_hat_BCHW, prior.encode(y))
    assert severity.sigma_Bhw.shape == severity.weight_Bhw.shape == (3, 8, 8)
    assert severity.parameters_BP2.shape == (3, 0, 2)
    assert severity.residual_BCHW.shape == (3, 0, SIDE, SIDE)
    assert encoder.degradation == "gaussian_blur"


def test_every_answer_is_in_its_range_whatever_the_weights(prior: LatentPrior, y: Tensor):
    encoder = severity_encoder(prior)
    with torch.no_grad():
        for head in encoder.net.heads[1:]:
            head[-1].weight *= 1e3
    severity = estimate(encoder, prior, y)
    assert (severity.sigma_Bhw > 0).all()
    assert severity.log_variance_Bhw.min() >= LOG_VARIANCE[0]
    assert severity.log_variance_Bhw.max() <= LOG_VARIANCE[1]
    assert severity.weight_Bhw.min() >= 0
    assert severity.weight_Bhw.max() <= 1
    assert all(torch.isfinite(value).all() for value in severity)


def test_the_change_of_the_latents_depends_on_the_pixels_and_on_the_latents(prior: LatentPrior, y: Tensor):
    encoder, e = severity_encoder(prior), prior.encode(y)
    change = encoder(y, e).z_hat_BCHW - e
    assert change.std() > 0.01
    assert (encoder(y.flip(3), e).z_hat_BCHW - e - change).abs().max() > 1e-3
    assert (encoder(y, e.flip(3)).z_hat_BCHW - e.flip(3) - change).abs().max() > 1e-3


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_saved_and_loaded_it_answers_the_same(kind: str, y: Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path / "prior", AUTOENCODERS[kind]())))
    encoder = severity_encoder(prior, degradation_settings={"std": [0.5, 2.0]}, noise_std=0.02)
    encoder.save_pretrained(tmp_path / "encoder")
    assert [path.suffix for path in (tmp_path / "encoder").iterdir() if path.suffix != ".json"] == [".safetensors"]
    loaded = load_severity_encoder(str(tmp_path / "encoder"))
    assert difference(estimate(loaded, prior, y), estimate(encoder, prior, y)) == 0
    assert loaded.config.degradation_settings == {"std": [0.5, 2.0]}
    assert loaded.noise_range == (0.02, 0.02)
    assert loaded.parameter_names == ("blur_std", "noise_std")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert len(loaded.sha256) == 64


def test_the_hash_follows_the_weights(prior: LatentPrior, tmp_path: Path):
    encoder = severity_encoder(prior)
    for name in ("one", "same"):
        encoder.save_pretrained(tmp_path / name)
    with torch.no_grad():
        encoder.net.heads[0].bias += 1e-3
    encoder.save_pretrained(tmp_path / "other")
    one, same, other = (load_severity_encoder(str(tmp_path / name)).sha256 for name in ("one", "same", "other"))
    assert one == same != other


def test_another_priors_encoder_is_refused_and_its_own_taken(prior: LatentPrior, tmp_path: Path):
    encoder = severity_encoder(prior)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = load_severity_encoder(str(tmp_path / "encoder"))
    loaded.check_prior(prior, "mine")
    folder = save_pipeline(tmp_path / "other", dc())
    (folder / "latent_statistics.json").write_text('{"mean": [0.1, -0.2, 0.3, 0.0], "std": [0.5, 1.0, 2.0, 4.0]}')
    with pytest.raises(ConfigError, match="mine was trained for another prior"):
        loaded.check_prior(load_prior(str(folder)), "mine")
    severity_encoder(load_prior(str(folder))).check_prior(load_prior(str(folder)), "its own")
    wider = LatentPrior(dc(latent_channels=8), unet(), prior.schedule, SIDE, scale=2.5)  # of the same scale
    with pytest.raises(ConfigError, match="mine was trained for another prior"):
        loaded.check_prior(wider, "mine")


def test_answers_do_not_depend_on_the_batch(prior: LatentPrior, y: Tensor):
    encoder = severity_encoder(prior).double()
    e = prior.encode(y).double()
    together = encoder(y.double(), e)
    for n in range(len(y)):
        alone = encoder(y[n : n + 1].double(), e[n : n + 1])
        assert difference(alone, Severity(*(value[n : n + 1] for value in together))) < 1e-12


@pytest.mark.parametrize("size", [(4, 4), (4, 12), (20, 36), (32, 28), (60, 44)])
def test_images_of_any_size_pass(prior: LatentPrior, size: tuple[int, int]):
    """Sides of 1, 3, 5, 7, 9, 11 and 15 latent positions among them: no multiples of the trunk's 4."""
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    severity = estimate(severity_encoder(prior), prior, image)
    positions = size[0] // 4, size[1] // 4
    assert severity.z_hat_BCHW.shape == (1, 4, *positions)
    assert severity.sigma_Bhw.shape == severity.weight_Bhw.shape == (1, *positions)
    assert severity.residual_BCHW.shape == (1, 3, *size)
    assert all(torch.isfinite(value).all() for value in severity)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("height", [STRIP_ROWS + 1, 2 * STRIP_ROWS + 35])
def test_strips_of_a_tall_image_are_the_whole(prior: LatentPrior, dtype: torch.dtype, bound: float, height: int):
    encoder = severity_encoder(prior).to(dtype)
    generator = torch.Generator().manual_seed(2)
    e = torch.randn(1, 4, height, 6, generator=generator).to(dtype)
    tall = (torch.rand(1, 3, 4 * height, 24, generator=generator) * 2 - 1).to(dtype)
    rows: list[int] = []
    encoder.net.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[2]))
    with torch.no_grad():
        strips = encoder(tall, e)
        assert len(rows) > 2  # the first was the run that measures the receptive field
        encoder._strips = lambda network, seen: network(seen)
        assert difference(strips, encoder(tall, e)) < bound


def test_nothing_looks_further_than_the_strips_say(prior: LatentPrior):
    encoder = severity_encoder(prior).double()
    generator = torch.Generator().manual_seed(3)
    e = torch.randn(1, 4, 160, 4, generator=generator).double()
    image = (torch.rand(1, 3, 640, 16, generator=generator) * 2 - 1).double()
    changed = e.clone()
    changed[:, :, 100] += 1
    with torch.no_grad():
        one, other = encoder(image, e), encoder(image, changed)
    moved = (one.log_variance_Bhw - other.log_variance_Bhw).abs().amax(dim=(0, 2)).nonzero()
    assert moved.min() >= 100 - encoder._strips.halo
    assert moved.max() <= 100 + encoder._strips.halo


def test_a_mean_over_positions_by_hand():
    """Two positions of precision 4 and 1 that say 1 and 6: mean 2, and the variance of the mean precision 2.5."""
    said = torch.tensor([[1.0, 6.0], [-torch.tensor(4.0).log(), 0.0]], dtype=torch.float64).reshape(1, 1, 2, 1, 2)
    mean, log_variance = mean_over_positions(said)[0, 0].tolist()
    assert mean == pytest.approx(2)
    assert log_variance == pytest.approx(-torch.tensor(2.5).log().item())


def test_a_mean_over_positions_counts_by_precision():
    generator = torch.Generator().manual_seed(4)
    said = torch.randn(2, 3, 2, 5, 7, generator=generator, dtype=torch.float64)
    precision = 1 / said[:, :, 1].exp()
    found = mean_over_positions(said)
    torch.testing.assert_close(found[..., 0], (said[:, :, 0] * precision).sum((2, 3)) / precision.sum((2, 3)))
    torch.testing.assert_close(found[..., 1].exp(), 1 / precision.mean((2, 3)))
    repeated = mean_over_positions(said.repeat(1, 1, 1, 2, 3))
    torch.testing.assert_close(repeated, found)  # neighbours that say the same add nothing
    uniform = said[..., :1, :1].expand(-1, -1, -1, 4, 4)
    torch.testing.assert_close(mean_over_positions(uniform), said[..., 0, 0])
    vague = said.clone()
    vague[0, 0, 0, 2, 3], vague[0, 0, 1, 2, 3] = 1e3, 100.0  # held at LOG_VARIANCE, so it counts, but little
    assert (mean_over_positions(vague)[0, 0, 0] - found[0, 0, 0]).abs() < 1e3


def test_parameters_are_in_units_of_their_ranges(prior: LatentPrior):
    encoder = severity_encoder(prior)
    units = encoder.in_units(
        {"noise_std": torch.tensor([0.01, 0.2, 0.105]), "blur_std": torch.tensor([3.0, 0.3, 1.65])}
    )
    torch.testing.assert_close(units, torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]))


def test_every_head_and_the_trunk_learn_and_the_prior_does_not(prior: LatentPrior, y: Tensor):
    encoder = severity_encoder(prior).train()
    sum(value.sum() for value in encoder(y, prior.encode(y))).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_two_encoders_of_one_prior_differ_in_their_weights_alone(prior: LatentPrior, y: Tensor):
    one, other = severity_encoder(prior), shaken(severity_encoder(prior), seed=6)
    assert difference(estimate(one, prior, y), estimate(other, prior, y)) > 0.1
    other.load_state_dict(one.state_dict())
    assert difference(estimate(one, prior, y), estimate(other, prior, y)) == 0


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


def test_an_encoder_without_safetensors_is_a_config_error(prior: LatentPrior, tmp_path: Path):
    severity_encoder(prior).save_pretrained(tmp_path / "encoder", safe_serialization=False)
    with pytest.raises(ConfigError, match="safetensors is missing"):
        load_severity_encoder(str(tmp_path / "encoder"))


def test_a_folder_of_another_model_is_a_config_error(tmp_path: Path):
    dc().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a AutoencoderDC"):
        load_severity_encoder(str(tmp_path))
