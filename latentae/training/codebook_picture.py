"""A small picture of how codes are used: each table's codes from the most used to the least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentae.devices import to_float64_on_cpu

_WIDTH, _HEIGHT, _MARGIN, _LETTERS = 320, 120, 8, 12
_LEAST, _MOST = -2.0, 2.0  # powers of ten of the even share
_BAR, _LINE, _INK = (70, 110, 170), (200, 60, 40), (30, 30, 30)


def codebook_picture(shares: Tensor) -> NDArray[np.uint8]:
    """A panel for each table, one below the other.

    From left to right the codes, the most used first; upwards how often each was chosen, on a logarithmic
    axis from a hundredth of an even share to a hundred times as much. The line is the even share; where there
    is nothing above the axis, codes are not used, or less than a hundredth as much.

    Args:
        shares: [depth, K] in multiples of an even share.

    Returns:
        [height, width, 3].
    """
    tables = [to_float64_on_cpu(shares_of_one.detach()).numpy() for shares_of_one in shares]
    names = [""] if len(tables) == 1 else [f"table {number}: " for number in range(len(tables))]
    return np.concatenate([_panel(table, name) for table, name in zip(tables, names, strict=True)])


def _panel(shares: NDArray[np.float64], name: str) -> NDArray[np.uint8]:
    top, bottom = _MARGIN + _LETTERS + 4, _HEIGHT - _MARGIN
    image = Image.new("RGB", (_WIDTH + 2 * _MARGIN, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    used = f"{name}{(shares > 0).mean():.1%} of {len(shares):,} codes in use"
    draw.text((_MARGIN, _MARGIN - 2), used, fill=_INK, font=ImageFont.load_default(size=_LETTERS))
    heights = _column_heights(shares, _WIDTH)
    for column, height in enumerate(heights):
        if height > 0:
            x = _MARGIN + column
            draw.line((x, bottom - height * (bottom - top), x, bottom), fill=_BAR)
    even = bottom + _LEAST / (_MOST - _LEAST) * (bottom - top)
    draw.line((_MARGIN, even, _MARGIN + _WIDTH - 1, even), fill=_LINE)
    draw.line((_MARGIN, bottom, _MARGIN + _WIDTH - 1, bottom), fill=_INK)
    return np.asarray(image)


def _column_heights(shares: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    """[columns] in [0, 1]: of each column's code in the order of use, or of the middle one of several."""
    descending = np.sort(shares)[::-1]
    chosen = descending[((np.arange(columns) + 0.5) * len(shares) / columns).astype(int)]
    with np.errstate(divide="ignore"):
        powers = np.log10(chosen)
    return np.clip((powers - _LEAST) / (_MOST - _LEAST), 0, 1)
