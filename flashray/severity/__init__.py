"""Severity: how wrong the latent estimate of an image is, and where its reverse diffusion therefore starts."""

from __future__ import annotations

from flashray.severity.encoder import SeverityEncoder, estimate, load_severity_encoder
from flashray.severity.loss import error_std, severity_loss
from flashray.severity.start import Start

__all__ = ["SeverityEncoder", "Start", "error_std", "estimate", "load_severity_encoder", "severity_loss"]
