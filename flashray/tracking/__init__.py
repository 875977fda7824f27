"""MLflow: what runs are told, how it reaches a server, models in its registry. The only room that imports mlflow."""

from flashray.tracking.client import default_uri
from flashray.tracking.tracker import Tracker

__all__ = ["Tracker", "default_uri"]
