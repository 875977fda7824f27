"""Fixtures shared by the tests: one small Ray cluster, a tiny prior with its severity encoder, and real photos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.mlflow_server import MlflowServer
from tests.support.models import SIDE, dc, edit_json, save_pipeline
from tests.support.seaweedfs import Weed, die_with_the_tests, free_ports

if TYPE_CHECKING:
    from flashray.pipeline.run_config import RunConfig
    from tests.support.runs import MakeConfig

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
torch.set_num_threads(1)  # the tests' networks are tiny: threads only get in each other's way


@dataclass(frozen=True)
class TinyModels:
    """Folders of a prior and of severity encoders, random weights, in the layouts that users have."""

    prior: str
    encoder: str
    other_encoder: str  # the same weights, said to be trained on another degradation


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for the whole session; more logical CPUs than cores, so that no stage starves another."""
    import ray

    from flashray.pipeline.cluster import connect

    started = connect()
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, photo: torch.Tensor) -> TinyModels:
    """A prior of 32×32 images with 4 latent channels at 1/4, a chain of 20 steps, and encoders of two families."""
    from flashray.prior import load_prior
    from tests.support.models import severity_encoder, spread_sigma

    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "prior", dc(), num_train_timesteps=20, beta_start=0.02, beta_end=0.6)
    prior = load_prior(str(folder / "prior"))
    encoder = severity_encoder(prior)
    crops = torch.stack([photo[:, 7 * n : 7 * n + SIDE, 5 * n : 5 * n + SIDE] for n in range(64)])
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))
    spread_sigma(encoder, prior, crops + 0.1 * noise, 0.1, 0.6)  # so that there is a spread of start steps
    encoder.save_pretrained(folder / "encoder")
    encoder.save_pretrained(folder / "other_encoder")
    edit_json(folder / "other_encoder" / "config.json", degradation="random_inpainting")
    return TinyModels(*(str(folder / name) for name in ("prior", "encoder", "other_encoder")))


@pytest.fixture(scope="session")
def make(tiny_models: TinyModels, ray_cluster: None) -> MakeConfig:
    """Configurations of the tiny models: small batches and units, so that there are several of each."""
    from flashray.pipeline.run_config import check
    from flashray.recipe import SolverConfig
    from flashray.severity import Start
    from flashray.tracking import TrackingConfig
    from tests.support.runs import config_of

    def make(archive: Path, output: Path, **values: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "measurement": "simulated",
            "prior": tiny_models.prior,
            "start": Start(severity_encoder=tiny_models.encoder),
            "solver": SolverConfig(steps=20, settings={"dc_step": 0.1}),
            "metrics": ["psnr", "ssim"],
            "slots": 2,
            "severity_batch": 4,
            "unit_images": 3,
            "tracking": TrackingConfig(enabled=False),
        }
        return check(config_of(str(archive), str(output), **settings | values))

    return make


@pytest.fixture(scope="session")
def photo() -> torch.Tensor:
    """A real photo, [3, 512, 512] in [-1, 1]."""
    from skimage import data

    return torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, photo: torch.Tensor) -> Path:
    """Ten crops of a photo, two of them in a folder, names with spaces and letters of other scripts; read only."""
    from flashray.images import encode_png

    folder = tmp_path_factory.mktemp("photos") / "archive"
    for i in range(10):
        path = folder / (f"crop {i}.png" if i < 8 else f"más fotos/ключ {i} é.PNG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(photo[:, 100 : 100 + SIDE, 40 * i : 40 * i + SIDE]))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: torch.Tensor) -> Path:
    """`IMAGES` crops of a photo; read only."""
    from flashray.images import encode_png
    from tests.support.models import IMAGES

    folder = tmp_path_factory.mktemp("crops") / "photos"
    folder.mkdir()
    for i in range(IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encode_png(photo[:, 18 * i : 18 * i + SIDE, 200 : 200 + SIDE]))
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 server, reached through the AWS environment."""
    with Weed.serving(tmp_path_factory.mktemp("weed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server.bucket


@pytest.fixture(scope="session")
def mlflow_server(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server with its artifacts on the S3 server; a test that ends it starts it again."""
    (port,) = free_ports(1)
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), port, f"{s3}/mlflow", die_with_the_tests)
    try:
        server.start()
        yield server
    finally:
        server.stop()
