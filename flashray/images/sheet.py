"""Contact sheets: a table of images with titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flashray.images.levels import to_pil


def contact_sheet(
    rows: Sequence[Sequence[Tensor | None]], column_titles: Sequence[str], row_titles: Sequence[str] | None = None
) -> Image.Image:
    """A table of images on white: one row an image, one column a method; None leaves its place empty.

    Images are [3, H, W] in [-1, 1] of any sizes; places are as large as the largest. ValueError when there is no image
    or the titles, which may have several lines, do not match the table.
    """
    images = [image for row in rows for image in row if image is not None]
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if any(len(row) != len(column_titles) for row in rows) or (row_titles is not None and len(row_titles) != len(rows)):
        raise ValueError("a contact sheet has one title a column and one a row")
    cell_width, cell_height = max(x.shape[2] for x in images), max(x.shape[1] for x in images)
    font = _font(max(11, min(cell_width // 10, 28)))
    columns, names = [_printable(title) for title in column_titles], [_printable(title) for title in row_titles or ()]
    gap = max(4, cell_width // 32)
    header = gap + max(_text_size(title, font)[1] for title in columns)
    left = gap + max((_text_size(name, font)[0] + gap for name in names), default=0)
    cell_width = max(cell_width, *(_text_size(title, font)[0] for title in columns))
    width, height = left + len(columns) * (cell_width + gap), header + gap + len(rows) * (cell_height + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((left + column * (cell_width + gap), gap), title, fill="black", font=font)
    for index, row in enumerate(rows):
        top = header + gap + index * (cell_height + gap)
        if names:
            draw.text((gap, top), names[index], fill="black", font=font)
        for column, image in enumerate(row):
            if image is not None:
                sheet.paste(to_pil(image), (left + column * (cell_width + gap), top))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes inside matplotlib and knows letters such as ẑ and σ."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _printable(text: str) -> str:
    """Without the characters that no font can lay out: file names may hold anything."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)
    return math.ceil(box[2]), math.ceil(box[3])
