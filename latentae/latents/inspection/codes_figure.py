"""Tiles of codes in rows, table by table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latentae.evaluation.pictures import picture_grid
from latentae.latents.inspection.figure import (
    INK,
    MARGIN,
    TEXT_SIZE,
    TITLE_HEIGHT,
    Figure,
    blank,
    finished,
    font,
    text_size,
)

_COLUMNS = 32
_SMALLEST_TILE = 24
_LINE, _GAP = 30, 16


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Codes of one table, decoded.

    Attributes:
        codes: [n] int64, in the order that is shown.
        tiles: [n, C, f, f] what one position of each becomes, in about [−1, 1].
        counts: [n] how often each occurred; None where nothing was counted.
        usage, perplexity: of the whole table, as ``codebook_health`` gives them; None likewise.
    """

    codes: Tensor
    tiles: Tensor
    counts: Tensor | None
    usage: float | None
    perplexity: float | None


def codes_figure(title: str, tables: Sequence[CodeTable], num_codes: int) -> Figure:
    """Blocks of tiles, each with a line above: of each table those in use, and those that are not."""
    blocks = [
        block
        for number, table in enumerate(tables)
        for block in _blocks(table, number, len(tables), num_codes)
    ]
    grids = [(heading, Image.fromarray(_grid(tiles))) for heading, tiles in blocks]
    width = max(max(grid.width, text_size(heading)[0]) for heading, grid in grids) + 2 * MARGIN
    height = TITLE_HEIGHT + sum(_LINE + grid.height + _GAP for _, grid in grids) + MARGIN - _GAP
    paper, draw = blank(width, height, title)
    top = TITLE_HEIGHT
    for heading, grid in grids:
        draw.text((MARGIN, top), heading, fill=INK, font=font(TEXT_SIZE), anchor="la")
        paper.paste(grid, (MARGIN, top + _LINE))
        top += _LINE + grid.height + _GAP
    return finished(title, paper)


def _blocks(table: CodeTable, number: int, tables: int, num_codes: int) -> list[tuple[str, Tensor]]:
    """Headings and tiles [n, C, f, f]."""
    name = f"table {number}: " if tables > 1 else ""
    if table.counts is None or table.usage is None or table.perplexity is None:
        return [(f"{name}{_part(len(table.codes), num_codes)}, in the order of their indices", table.tiles)]
    used, shown = round(table.usage * num_codes), int((table.counts > 0).sum())
    facts = f"{used} of {num_codes} codes in use, perplexity {table.perplexity:.1f}; "
    order = "most used first" if shown == used else f"the {shown} most used"
    blocks = [(f"{name}{facts}{order}", table.tiles[:shown])]
    if shown < len(table.codes):
        idle = _part(len(table.codes) - shown, num_codes - used)
        blocks.append((f"{name}not in use: {idle}", table.tiles[shown:]))
    return blocks


def _part(shown: int, there_are: int) -> str:
    return f"all {there_are} codes" if shown == there_are else f"{shown} of {there_are} codes"


def _grid(tiles: Tensor) -> NDArray[np.uint8]:
    """A picture [H, W, 3] of tiles in rows, white where the last row has none."""
    larger = -(-_SMALLEST_TILE // tiles.shape[-1])
    tiles = F.interpolate(tiles.clamp(-1, 1), scale_factor=float(larger), mode="nearest")
    missing = -len(tiles) % _COLUMNS if len(tiles) > _COLUMNS else 0
    columns = min(_COLUMNS, len(tiles))
    tiles = torch.cat([tiles, tiles.new_ones(missing, *tiles.shape[1:])])
    return picture_grid(tiles.view(-1, columns, *tiles.shape[1:]), border=1)
