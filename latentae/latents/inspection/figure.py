"""A finished figure, and the text in it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from latentae.evaluation.pictures import save_png

INK = (26, 28, 32)
QUIET = (91, 97, 107)
GRID = (222, 226, 232)
PAPER = (255, 255, 255)
# Told apart also by those who see colours otherwise (Okabe & Ito 2008).
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))

TITLE_SIZE = 26
TEXT_SIZE = 18
MARGIN = 20
TITLE_HEIGHT = 56


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture with labels.

    Attributes:
        title: what it shows.
        picture: [H, W, 3] uint8.
    """

    title: str
    picture: NDArray[np.uint8]

    def save(self, path: str | Path) -> None:
        """Writes a PNG into a folder that exists; it appears whole or not at all."""
        save_png(self.picture, Path(path))

    def png(self) -> bytes:
        """The PNG's content."""
        encoded = io.BytesIO()
        Image.fromarray(self.picture).save(encoded, format="PNG")
        return encoded.getvalue()


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow; it knows Latin letters and digits, and no mathematical signs."""
    return ImageFont.load_default(size=size)


def text_size(text: str, size: int = TEXT_SIZE) -> tuple[int, int]:
    """Width and height in pixels of one line or several."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font=font(size), anchor="la"
    )
    return round(right - min(0, left)), round(bottom - min(0, top))


def blank(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper, with the title in its upper left corner; as wide as the title at least."""
    width = max(width, text_size(title, TITLE_SIZE)[0] + 2 * MARGIN)
    paper = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=font(TITLE_SIZE), anchor="la")
    return paper, draw


def finished(title: str, paper: Image.Image) -> Figure:
    """The figure that was drawn on the paper."""
    return Figure(title, np.asarray(paper))


def short_number(value: float) -> str:
    """With three significant digits, and without an exponent where that is readable."""
    return f"{value:.3g}" if value else "0"
