"""MLflow: runs, and models in its registry. The only package that imports mlflow."""

from flashray.tracking.client import default_uri
from flashray.tracking.tracker import Tracker
from flashray.tracking.tracking_config import TrackingConfig

__all__ = ["Tracker", "TrackingConfig", "default_uri"]
