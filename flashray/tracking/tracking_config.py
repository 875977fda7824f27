"""The settings of tracking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow.

    Args:
        enabled: false runs without tracking.
        experiment: the experiment's name.
        tracking_uri: an MLflow server or database; default MLFLOW_TRACKING_URI, else mlflow.db beside the output.
        patience: seconds that the job waits for MLflow, in all; the next start brings the rest.
    """

    enabled: bool = True
    experiment: str = "flashray"
    tracking_uri: str | None = None
    patience: float = 10.0
