"""A matrix of correlations in colours."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw
from torch import Tensor

from latentae.latents.inspection.figure import (
    INK,
    MARGIN,
    PAPER,
    QUIET,
    TEXT_SIZE,
    TITLE_HEIGHT,
    Figure,
    blank,
    finished,
    font,
)

# From -1 over 0 to +1, told apart also by those who see colours otherwise.
_NEGATIVE, _ZERO, _POSITIVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)
_CONSTANT = (200, 200, 200)
_LARGEST_CELL, _SIDE = 88, 704
_ROOM_FOR_NUMBERS = 40
_LEFT, _BELOW, _SCALE = 70, 62, 150
_LEAST_HEIGHT = 250


def matrix_figure(title: str, matrix: Tensor, constant: Sequence[int] = ()) -> Figure:
    """A matrix [c, c] of values in [−1, 1], blue below zero and red above; with numbers up to 17 channels.

    Args:
        constant: channels without a correlation, which stay grey.
    """
    channels = len(matrix)
    cell = max(2, min(_LARGEST_CELL, _SIDE // channels))
    side = cell * channels
    left, top = MARGIN + _LEFT, TITLE_HEIGHT + 8
    paper, draw = blank(
        left + side + _SCALE + MARGIN, top + max(side, _LEAST_HEIGHT) + _BELOW + MARGIN, title
    )
    values = matrix.tolist()
    small = font(min(TEXT_SIZE, cell // 3 + 2))
    for row in range(channels):
        for column in range(channels):
            x, y = left + column * cell, top + row * cell
            is_missing = row in constant or column in constant
            value = values[row][column]
            draw.rectangle(
                (x, y, x + cell - 1, y + cell - 1), fill=_CONSTANT if is_missing else _colour(value)
            )
            if cell >= _ROOM_FOR_NUMBERS:
                text = "-" if is_missing else f"{value:z.2f}"
                ink = PAPER if abs(value) > 0.6 and not is_missing else INK
                draw.text((x + cell / 2, y + cell / 2), text, fill=ink, font=small, anchor="mm")
    _names(draw, channels, cell, left, top)
    _scale(draw, left + side + 40, top, bool(constant))
    return finished(title, paper)


def _names(draw: ImageDraw.ImageDraw, channels: int, cell: int, left: int, top: int) -> None:
    """The channels' numbers at both axes, as many as there is room for."""
    every = -(-30 // cell)
    side = cell * channels
    for number in range(0, channels, every):
        middle = (number + 0.5) * cell
        draw.text((left - 8, top + middle), str(number), fill=QUIET, font=font(TEXT_SIZE), anchor="rm")
        draw.text((left + middle, top + side + 8), str(number), fill=QUIET, font=font(TEXT_SIZE), anchor="ma")
    draw.text(
        (left + side / 2, top + side + 36), "latent channel", fill=INK, font=font(TEXT_SIZE), anchor="ma"
    )


def _scale(draw: ImageDraw.ImageDraw, left: int, top: int, has_constant: bool) -> None:
    """What the colours mean."""
    height = 240
    for step in range(height):
        draw.line((left, top + step, left + 22, top + step), fill=_colour(1 - 2 * step / (height - 1)))
    for share, text in ((0.0, "+1"), (0.5, "0"), (1.0, "-1")):
        place = (left + 32, top + share * (height - 1))
        draw.text(place, text, fill=QUIET, font=font(TEXT_SIZE), anchor="lm")
    if has_constant:
        draw.rectangle((left, top + height + 24, left + 22, top + height + 46), fill=_CONSTANT)
        place = (left + 32, top + height + 35)
        draw.text(place, "constant", fill=QUIET, font=font(TEXT_SIZE), anchor="lm")


def _colour(value: float) -> tuple[int, int, int]:
    end = _POSITIVE if value > 0 else _NEGATIVE
    red, green, blue = (round(a + (b - a) * abs(value)) for a, b in zip(_ZERO, end, strict=True))
    return red, green, blue
