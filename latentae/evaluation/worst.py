"""Chooses the images that a report shows, the worst first, and writes their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentae.data.names import printable_name
from latentae.evaluation.assembly import Assembled
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.report.grids import picture_grid, save_png
from latentae.report.results import Picture

_WORST = 16
_OTHERS = 8


def choose_pictures(results: dict[str, Assembled], seed: int = 0) -> dict[int, list[str]]:
    """Chooses the worst images of each model, those around the median of the first, and some at random.

    The worst are those by LPIPS if it was measured of all images, else by PSNR.

    Args:
        results: model → its numbers, all of the same images.
        seed: of the random choice.

    Returns:
        image → reasons, in the order worst, median, random.
    """
    first = next(iter(results.values()))
    reasons: dict[int, list[str]] = {}
    for name, result in results.items():
        for position in _from_worst(result)[:_WORST].tolist():
            reasons.setdefault(int(result.indices[position]), []).append(f"worst of {name}")
    order = _from_worst(first)
    middle = order[max(0, len(order) // 2 - _OTHERS // 2) :][:_OTHERS]
    for position in middle.tolist():
        reasons.setdefault(int(first.indices[position]), []).append("median")
    count = min(_OTHERS, len(first.indices))
    draws = np.random.default_rng(seed).choice(len(first.indices), count, replace=False)
    for position in sorted(draws.tolist()):
        reasons.setdefault(int(first.indices[position]), []).append("random")
    return reasons


@torch.no_grad()
def save_pictures(
    reasons: dict[int, list[str]],
    blocks: ImageBlocks,
    models: Sequence[NamedModel],
    results: dict[str, Assembled],
    folder: Path,
    device: torch.device,
) -> list[Picture]:
    """Writes originals and reconstructions as PNGs into ``folder/pictures``.

    Returns:
        the report's entries, in the order of ``reasons``.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = []
    for index, why in reasons.items():
        original = blocks.prepare(index)
        files = {"": f"pictures/{index:06d}.png"}
        _save(original, folder / files[""])
        values = {}
        for number, model in enumerate(models):
            files[model.name] = f"pictures/{index:06d}_{number}.png"
            _save(model(original[None].to(device)).sample[0], folder / files[model.name])
            values[model.name] = _values(results[model.name], index)
        reconstructions = {name: file for name, file in files.items() if name}
        name = printable_name(blocks.source.name(index))
        pictures.append(Picture(index, name, why, files[""], reconstructions, values))
    return pictures


def _from_worst(result: Assembled) -> Tensor:
    """Returns the positions of the images, the worst first."""
    distances = [
        values
        for name, values in result.values.items()
        if name.startswith("lpips") and not values.isnan().any()  # NaN: too small an image
    ]
    worst = distances[0] if distances else -result.values["psnr"]
    return worst.argsort(descending=True, stable=True)


def _values(result: Assembled, index: int) -> dict[str, float]:
    position = int((result.indices == index).nonzero()[0])
    return {
        name: values[position].item()
        for name, values in result.values.items()
        if not values[position].isnan() and not name.startswith("cycle_")
    }


def _save(image: Tensor, path: Path) -> None:
    shown = to_images(to_uint8(image))[None, None].cpu()
    save_png(picture_grid(shown, border=0), path)
