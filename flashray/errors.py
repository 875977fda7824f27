"""The errors that users see. Each message names the thing that is wrong and the remedy."""

from __future__ import annotations


class FlashrayError(Exception):
    """Base of every error that flashray raises on purpose."""


class ConfigError(FlashrayError):
    """Bad arguments, recipe or environment; found before any work starts (exit code 2)."""


class ImageError(FlashrayError):
    """One image cannot be read, decoded, fitted or solved: it becomes a row with an error, and the job continues."""
