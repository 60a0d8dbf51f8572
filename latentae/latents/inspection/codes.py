"""The codes of a VQ model: how often each occurs, and each decoded alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentae.latents.inspection.channels import as_batches
from latentae.latents.inspection.decoding import check_pixels
from latentae.models import VQVAE
from latentae.quantizers import Quantizer, ResidualQuantizer
from latentae.quantizers.health import code_counts, codebook_health
from latentae.report.grids import Figure, tile_grids

# Positions per side of the map that a code is decoded as; the middle one, away from the borders, is shown.
_POSITIONS = 5

ABOUT = (
    "Each code, decoded as a map filled with it; each tile is one position of that map, the most used code "
    "first. In an image a code's neighbours decide how it looks, so tiles show its colour and texture alone. "
    "Codes that these images do not use are rare or dead. A code that was never decoded in training may look "
    "like anything."
)
ABOUT_GRID = " The codes of this quantizer are a fixed grid: the tiles show how the decoder draws its points."
ABOUT_RESIDUAL = (
    " Table 0 is decoded alone, each code of a later table on top of the most used codes of those before it: "
    "later tables correct, and their tiles differ little."
)
ABOUT_GROUPED = (
    " A code of one table is decoded with the most used code of every other table beside it, since a table "
    "alone makes no latents."
)


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Codes of one table, decoded.

    Attributes:
        codes: [n] int64, in the order of the figure.
        tiles: [n, C, f, f] one decoded position of each, in about [−1, 1].
        counts: [n] how often each occurred; None where nothing was counted.
        usage, perplexity: of the whole table, from ``codebook_health``; None where nothing was counted.
    """

    codes: Tensor
    tiles: Tensor
    counts: Tensor | None = None
    usage: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True, eq=False)
class CodebookPictures:
    """Decoded tables of ``num_codes`` codes each, and ``about``, which explains the figure in sentences."""

    tables: list[CodeTable]
    num_codes: int
    about: str

    def figure(self, alpha: bool = False) -> Figure:
        """Draws the tiles of each table, used codes before unused ones. ``alpha``: see ``tile_grids``."""
        blocks = [
            block
            for number, table in enumerate(self.tables)
            for block in _blocks(table, number, len(self.tables), self.num_codes)
        ]
        return tile_grids("Codes, decoded", blocks, alpha=alpha)

    def numbers(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        tables = [
            {
                "codes": table.codes.tolist(),
                "counts": None if table.counts is None else table.counts.tolist(),
                "usage": table.usage,
                "perplexity": table.perplexity,
                "colours": table.tiles.mean(dim=(2, 3)).tolist(),
            }
            for table in self.tables
        ]
        return {"num_codes": self.num_codes, "tables": tables}


@torch.no_grad()
def count_codes(model: VQVAE, latents: Tensor | Iterable[Tensor]) -> Tensor:
    """Counts how often each code stands for a position of raw latents [B, d, h, w], or of batches of them.

    Returns:
        [K] int64, or [depth, K] of a composition, on the CPU.

    Raises:
        ValueError: latents that are not finite.
    """
    quantizer = model.quantize
    shape = (quantizer.num_codes,) if quantizer.depth is None else (quantizer.depth, quantizer.num_codes)
    counts = torch.zeros(shape, dtype=torch.int64)
    for batch in as_batches(latents):
        counts += code_counts(quantizer.indices(batch.to(model.device)), quantizer.num_codes).cpu()
    return counts


@torch.no_grad()
def codebook_pictures(
    model: VQVAE, counts: Tensor | None = None, *, most: int = 1024, batch_size: int = 256
) -> CodebookPictures:
    """Decodes codes one by one, the most used first.

    A composition is decoded table by table. Codes of a residual quantizer are added to the most used codes of
    the tables before; codes of a grouped one stand beside the most used code of every other table.

    Args:
        model: a VQ model in eval mode.
        counts: [K] or [depth, K] from ``count_codes``; None: codes are in the order of their indices, and
            code 0 takes the place of the most used one.
        most: the largest number of codes of each table to decode.
        batch_size: codes decoded at a time.

    Raises:
        ValueError: a model without codes, counts of another shape, or ``most`` below one.
    """
    quantizer = getattr(model, "quantize", None)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"codebook_pictures needs a model with codes, and a {type(model).__name__} has none")
    if most < 1:
        raise ValueError(f"most is {most}, but must be at least 1")
    depth, codes = quantizer.depth, quantizer.num_codes
    if counts is not None and counts.shape != ((codes,) if depth is None else (depth, codes)):
        raise ValueError(
            f"counts are {list(counts.shape)}, but this model has {depth or 1} table(s) of {codes}: take "
            "those of count_codes"
        )
    of_tables = [None] * (depth or 1) if counts is None else list(counts.view(-1, codes))
    common = torch.tensor([0 if own is None else int(own.argmax()) for own in of_tables])
    tables = []
    for number, own in enumerate(of_tables):
        order = torch.arange(codes) if own is None else own.argsort(descending=True, stable=True)
        shown = order[:most]
        parts = [_tiles(model, number, part, common) for part in shown.split(batch_size)]
        table = CodeTable(shown, torch.cat(parts))
        if own is not None:
            health = codebook_health(own)
            table = replace(table, counts=own[shown], usage=health.usage, perplexity=health.perplexity)
        tables.append(table)
    return CodebookPictures(tables, codes, ABOUT + _about(quantizer))


def _tiles(model: VQVAE, table: int, codes: Tensor, common: Tensor) -> Tensor:
    """Decodes codes [n] of one table to [n, C, f, f]; ``common`` [depth] stands in the others."""
    if model.quantize.depth is None:
        indices = codes[:, None, None].expand(-1, _POSITIONS, _POSITIONS)
    else:
        known = common[: table + 1] if isinstance(model.quantize, ResidualQuantizer) else common
        rows = known.repeat(len(codes), 1)
        rows[:, table] = codes
        indices = rows[:, :, None, None].expand(-1, -1, _POSITIONS, _POSITIONS)
    images = model.decode_indices(indices.to(model.device)).float().cpu()
    check_pixels(images, model)
    factor, first = model.downsampling_factor, _POSITIONS // 2
    middle = slice(first * factor, (first + 1) * factor)
    return images[..., middle, middle]


def _about(quantizer: Quantizer) -> str:
    if isinstance(quantizer, ResidualQuantizer):
        return ABOUT_RESIDUAL
    if quantizer.depth is not None:
        return ABOUT_GROUPED
    return "" if list(quantizer.parameters()) or quantizer.upkeep else ABOUT_GRID


def _blocks(table: CodeTable, number: int, tables: int, num_codes: int) -> list[tuple[str, Tensor]]:
    """Returns the headings and tiles [n, C, f, f] of a table."""
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
