"""Images in rows and columns, with their names at the left and above."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentae.evaluation.pictures import picture_grid
from latentae.latents.inspection.figure import (
    INK,
    MARGIN,
    QUIET,
    TEXT_SIZE,
    TITLE_HEIGHT,
    Figure,
    blank,
    finished,
    font,
    text_size,
)

# Pixels of a shown image's longer side: small ones grow by whole numbers, large ones shrink.
_SMALLEST, _LARGEST = 112, 192
_LINE = 26


def image_grid(
    title: str,
    images: Tensor | Sequence[Tensor],
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    column_title: str = "",
    border: int = 2,
) -> Figure:
    """A labelled grid of images, shown as ``picture_grid`` does: of several bands the first three.

    Args:
        title: above all.
        images: [rows, columns, C, H, W] in [−1, 1], or one [columns, C, H, W] a row.
        rows: a name at the left of each, perhaps of two lines.
        columns: a name above each; none leaves them out.
        column_title: what the columns' names are.
        border: white pixels around each image.
    """
    stacked = _resized(images if isinstance(images, Tensor) else torch.stack(list(images)))
    grid = Image.fromarray(picture_grid(stacked, border))
    left = MARGIN + max(text_size(row)[0] for row in rows) + MARGIN
    top = TITLE_HEIGHT + (_LINE if column_title else 0) + (_LINE if columns else 0) + 4
    width, height = left + grid.width + MARGIN, top + grid.height + MARGIN
    paper, draw = blank(max(width, left + text_size(column_title)[0] + MARGIN), height, title)
    paper.paste(grid, (left, top))
    cell_width, cell_height = grid.width / stacked.shape[1], grid.height / stacked.shape[0]
    if column_title:
        draw.text((left, TITLE_HEIGHT), column_title, fill=QUIET, font=font(TEXT_SIZE), anchor="la")
    for number, name in enumerate(columns):
        place = (left + (number + 0.5) * cell_width, top - 6)
        draw.text(place, name, fill=INK, font=font(TEXT_SIZE), anchor="ms")
    for number, name in enumerate(rows):
        middle = top + (number + 0.5) * cell_height
        _, tall = text_size(name)
        draw.multiline_text((MARGIN, middle - tall / 2), name, fill=INK, font=font(TEXT_SIZE), anchor="la")
    return finished(title, paper)


def _resized(images: Tensor) -> Tensor:
    """[rows, columns, C, H, W] at a size that can be seen, and fits beside others."""
    rows, columns, _, height, width = images.shape
    longest = max(height, width)
    flat = images.detach().float().clamp(-1, 1).flatten(0, 1)
    if longest < _SMALLEST:
        flat = F.interpolate(flat, scale_factor=float(-(-_SMALLEST // longest)), mode="nearest")
    elif longest > _LARGEST:
        size = [max(1, round(side * _LARGEST / longest)) for side in (height, width)]
        flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    return flat.view(rows, columns, *flat.shape[1:])
