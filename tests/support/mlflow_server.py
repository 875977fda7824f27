"""A real `mlflow server` that can be killed, frozen and started again, with its artifacts in an S3 bucket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


class MlflowServer:
    """The server of one folder and port; the same database whenever it is started.

    Args:
        folder: for its database and log.
        artifacts: s3:// prefix that it keeps artifacts in, reached through this process's environment.
        at_birth: called in the new process.
    """

    def __init__(self, folder: Path, port: int, artifacts: str, at_birth: Callable[[], None]) -> None:
        self.folder, self.artifacts, self.at_birth = folder, artifacts, at_birth
        self.port, self.uri = port, f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", self.artifacts]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=self.at_birth
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self._process.poll() is None, f"the MLflow server ended by itself: {self.folder}/log"
            assert time.monotonic() < deadline, "the MLflow server did not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To the server and its workers: SIGKILL, SIGSTOP, SIGCONT."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
