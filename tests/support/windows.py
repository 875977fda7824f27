"""Where windows begin, as rows and columns."""

from __future__ import annotations

from flashray.windows import Windows


def corners(windows: Windows) -> list[tuple[int, int]]:
    """[K] (row, column) of the windows' first positions."""
    return [(row, column) for row in windows.rows.starts_K.tolist() for column in windows.columns.starts_K.tolist()]
