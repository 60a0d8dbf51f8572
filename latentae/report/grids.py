"""Pictures made of images: pixel-exact grids with labels, and the PNG files they become."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentae.files import write_aside

Picture = NDArray[np.uint8]
"""[H, W, 3]."""

_INK, _QUIET = (26, 28, 32), (91, 97, 107)
_TITLE_SIZE, _TEXT_SIZE = 26, 18
_MARGIN, _TITLE_HEIGHT, _LINE, _GAP = 20, 56, 26, 16
# The longer side of an image in a labelled grid: small images grow by whole numbers, large ones shrink.
_SMALLEST, _LARGEST = 112, 192
# The checkerboard under transparent pixels.
_SQUARE, _SQUARES_GREY = 8, 204


@dataclass(frozen=True, eq=False)
class Figure:
    """A finished picture [H, W, 3] uint8 with a title."""

    title: str
    picture: Picture

    def save(self, path: str | Path) -> None:
        """Writes a PNG into a folder that exists; the file appears whole or not at all."""
        save_png(self.picture, Path(path))

    def png(self) -> bytes:
        """Returns the content of the PNG file."""
        return _png(self.picture)


def picture_grid(images: Tensor, border: int = 2, *, alpha: bool = False) -> Picture:
    """Returns rows and columns of images as one picture, with a white border around each image.

    Args:
        images: [rows, columns, C, H, W] in [−1, 1]; values outside are clamped. One or two channels are
            shown as the first in grey, more as the first three in red, green and blue.
        border: its width in pixels.
        alpha: whether four channels are RGBA, with straight alpha. Images are then shown on a checkerboard.

    Returns:
        [rows · (H + 2 · border), columns · (W + 2 · border), 3].
    """
    framed = F.pad(_shown(images, alpha), (border,) * 4, value=1.0)
    grid = rearrange(framed, "row column c h w -> (row h) (column w) c")
    return ((grid + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def _shown(images: Tensor, alpha: bool) -> Tensor:
    """Returns images [rows, columns, C, H, W] as ``picture_grid`` shows them, with three channels."""
    shown = images.detach().float().clamp(-1, 1)
    if alpha and shown.shape[2] == 4:
        shown = _on_checkerboard(shown)
    return shown[:, :, :3] if shown.shape[2] >= 3 else shown[:, :, :1].expand(-1, -1, 3, -1, -1)


def checkerboard(height: int, width: int) -> Picture:
    """Returns squares of 8 pixels, white and light grey (204), white in the upper left corner."""
    rows, columns = np.ogrid[:height, :width]
    squares = (rows // _SQUARE + columns // _SQUARE) % 2
    return np.where(squares == 0, 255, _SQUARES_GREY)[..., np.newaxis].repeat(3, axis=2).astype(np.uint8)


def _on_checkerboard(images: Tensor) -> Tensor:
    """Returns RGBA images [rows, columns, 4, H, W] in [−1, 1] as Pillow composites them, 3 channels."""
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).cpu()
    board = Image.fromarray(checkerboard(*images.shape[-2:])).convert("RGBA")
    shown = [
        np.asarray(Image.alpha_composite(board, Image.fromarray(image.permute(1, 2, 0).numpy())))[..., :3]
        for image in pixels.flatten(0, 1)
    ]
    composed = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return composed.unflatten(0, images.shape[:2])


def save_png(picture: Picture, path: Path) -> None:
    """Writes [H, W, 3] to ``path``, whose folder must exist. The file appears whole or not at all."""
    write_aside(path, _png(picture))


def label_rows(grid: Picture, labels: Sequence[str]) -> Picture:
    """Returns a grid with a name at the left of each of its rows, which are of equal height."""
    row_height = len(grid) // len(labels)
    letters = _font(max(10, min(24, row_height // 6)))
    width = round(max(letters.getbbox(label)[2] for label in labels)) + 12
    column = Image.new("RGB", (width, len(grid)), "white")
    draw = ImageDraw.Draw(column)
    for row, label in enumerate(labels):
        draw.text((6, (row + 0.5) * row_height), label, fill="black", font=letters, anchor="lm")
    return np.concatenate([np.asarray(column), grid], axis=1)


def image_grid(
    title: str,
    images: Tensor | Sequence[Tensor],
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    column_title: str = "",
    border: int = 2,
    alpha: bool = False,
) -> Figure:
    """Returns a labelled grid of images, which are shown as ``picture_grid`` shows them.

    Args:
        title: above the grid.
        images: [rows, columns, C, H, W] in [−1, 1], or one [columns, C, H, W] per row.
        rows: a name at the left of each row, perhaps of two lines.
        columns: a name above each column; none leaves them out.
        column_title: what the columns' names are.
        border: white pixels around each image.
        alpha: whether four channels are RGBA, as in ``picture_grid``.
    """
    stacked = images if isinstance(images, Tensor) else torch.stack(list(images))
    # Transparency goes before a resize, which would mix in the colours under transparent pixels.
    visible = _visible_size(_shown(stacked, alpha))
    grid = Image.fromarray(picture_grid(visible, border))
    # The paper: a title, the names above and at the left, and the grid.
    left = _MARGIN + max(_text_size(row)[0] for row in rows) + _MARGIN
    top = _TITLE_HEIGHT + (_LINE if column_title else 0) + (_LINE if columns else 0) + 4
    width = max(left + grid.width, left + _text_size(column_title)[0]) + _MARGIN
    paper, draw = _paper(width, top + grid.height + _MARGIN, title)
    paper.paste(grid, (left, top))
    # The names, each in the middle of its column or row.
    cell_width, cell_height = grid.width / stacked.shape[1], grid.height / stacked.shape[0]
    if column_title:
        draw.text((left, _TITLE_HEIGHT), column_title, fill=_QUIET, font=_font(_TEXT_SIZE), anchor="la")
    for number, name in enumerate(columns):
        place = (left + (number + 0.5) * cell_width, top - 6)
        draw.text(place, name, fill=_INK, font=_font(_TEXT_SIZE), anchor="ms")
    for number, name in enumerate(rows):
        upper = top + (number + 0.5) * cell_height - _text_size(name)[1] / 2
        draw.multiline_text((_MARGIN, upper), name, fill=_INK, font=_font(_TEXT_SIZE), anchor="la")
    return Figure(title, np.asarray(paper))


def tile_grids(
    title: str, blocks: Sequence[tuple[str, Tensor]], *, columns: int = 32, alpha: bool = False
) -> Figure:
    """Returns blocks of small tiles in rows, each block under a heading.

    Args:
        title: stands above the blocks.
        blocks: a heading and its tiles [n, C, f, f] in about [−1, 1]. Tiles below 24 pixels grow by
            whole numbers.
        columns: tiles per row.
        alpha: whether four channels are RGBA, as in ``picture_grid``.
    """
    grids = [(heading, Image.fromarray(_tiles(tiles, columns, alpha))) for heading, tiles in blocks]
    width = max(max(grid.width, _text_size(heading)[0]) for heading, grid in grids) + 2 * _MARGIN
    height = _TITLE_HEIGHT + sum(_LINE + 4 + grid.height + _GAP for _, grid in grids) + _MARGIN - _GAP
    paper, draw = _paper(width, height, title)
    top = _TITLE_HEIGHT
    for heading, grid in grids:
        draw.text((_MARGIN, top), heading, fill=_INK, font=_font(_TEXT_SIZE), anchor="la")
        paper.paste(grid, (_MARGIN, top + _LINE + 4))
        top += _LINE + 4 + grid.height + _GAP
    return Figure(title, np.asarray(paper))


def _tiles(tiles: Tensor, columns: int, alpha: bool) -> Picture:
    """Returns tiles in rows as a picture [H, W, 3], white where the last row has none."""
    larger = -(-24 // tiles.shape[-1])
    tiles = F.interpolate(tiles.clamp(-1, 1), scale_factor=float(larger), mode="nearest")
    missing = -len(tiles) % columns if len(tiles) > columns else 0
    tiles = torch.cat([tiles, tiles.new_ones(missing, *tiles.shape[1:])])
    return picture_grid(tiles.view(-1, min(columns, len(tiles)), *tiles.shape[1:]), border=1, alpha=alpha)


def _visible_size(images: Tensor) -> Tensor:
    """Returns [rows, columns, C, H, W] at a size that can be seen and fits beside others."""
    rows, columns, _, height, width = images.shape
    longest = max(height, width)
    flat = images.detach().float().clamp(-1, 1).flatten(0, 1)
    if longest < _SMALLEST:
        flat = F.interpolate(flat, scale_factor=float(-(-_SMALLEST // longest)), mode="nearest")
    elif longest > _LARGEST:
        size = [max(1, round(side * _LARGEST / longest)) for side in (height, width)]
        flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    return flat.view(rows, columns, *flat.shape[1:])


def _png(picture: Picture) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG")
    return encoded.getvalue()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the font that comes with Pillow; it has Latin letters and digits, and no mathematical signs."""
    return ImageFont.load_default(size=size)


def _text_size(text: str, size: int = _TEXT_SIZE) -> tuple[int, int]:
    """Returns width and height in pixels of one line or several."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font=_font(size), anchor="la"
    )
    return round(right - min(0, left)), round(bottom - min(0, top))


def _paper(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns white paper with the title in its upper left corner, at least as wide as the title."""
    width = max(width, _text_size(title, _TITLE_SIZE)[0] + 2 * _MARGIN)
    paper = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(paper)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(_TITLE_SIZE), anchor="la")
    return paper, draw
