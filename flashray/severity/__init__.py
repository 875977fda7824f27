"""Severity: the predicted error of an image's latent estimate, and the start of its reverse diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashray.severity.start import Start

if TYPE_CHECKING:
    from flashray.severity.encoder import Severity, SeverityEncoder, estimate, load_severity_encoder

__all__ = ["Severity", "SeverityEncoder", "Start", "estimate", "load_severity_encoder"]


def __getattr__(name: str) -> Any:
    """Import on first use: every configuration needs `Start`, and the encoder imports diffusers."""
    from importlib import import_module

    if name in __all__:
        return getattr(import_module("flashray.severity.encoder"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
