"""The pictures of a report: which images it shows, and the crops whose colours are the worst."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentae.data.names import printable_name
from latentae.evaluation.assembly import Assembled
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.colour import CROP
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.report.grids import Picture as PictureArray
from latentae.report.grids import picture_grid, save_png
from latentae.report.results import Crop, Picture

_WORST = 16
_OTHERS = 8
_CROPS = 6  # per model


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
    chosen = [(f"worst of {name}", _from_worst(result)[:_WORST]) for name, result in results.items()]
    order = _from_worst(first)
    chosen.append(("median", order[max(0, len(order) // 2 - _OTHERS // 2) :][:_OTHERS]))
    count = min(_OTHERS, len(order))
    draws = np.random.default_rng(seed).choice(len(order), count, replace=False)
    chosen.append(("random", torch.from_numpy(np.sort(draws))))
    reasons: dict[int, list[str]] = {}
    for reason, positions in chosen:
        for index in first.indices[positions].tolist():  # the same images for all models
            reasons.setdefault(index, []).append(reason)
    return reasons


@torch.no_grad()
def save_pictures(
    reasons: dict[int, list[str]],
    blocks: ImageBlocks,
    models: Sequence[NamedModel],
    results: dict[str, Assembled],
    folder: Path,
    device: torch.device,
    *,
    alpha: bool = False,
) -> list[Picture]:
    """Writes originals and reconstructions as PNGs into ``folder/pictures``; returns the report's entries.

    With ``alpha`` RGBA images are shown on a checkerboard.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = []
    for index, why in reasons.items():
        original = blocks.prepare(index)
        files = {"": f"pictures/{index:06d}.png"}
        _save(original, folder / files[""], alpha=alpha)
        values = {}
        for number, model in enumerate(models):
            files[model.name] = f"pictures/{index:06d}_{number}.png"
            reconstruction = model(original[None].to(device)).sample[0]
            _save(reconstruction, folder / files[model.name], alpha=alpha)
            values[model.name] = _values(results[model.name], index)
        reconstructions = {name: file for name, file in files.items() if name}
        name = printable_name(blocks.source.name(index))
        pictures.append(Picture(index, name, why, files[""], reconstructions, values))
    return pictures


@torch.no_grad()
def save_crops(
    pictures: Sequence[Picture],
    blocks: ImageBlocks,
    models: Sequence[NamedModel],
    results: dict[str, Assembled],
    folder: Path,
    device: torch.device,
    *,
    alpha: bool = False,
) -> list[Crop]:
    """Writes the worst crops of each model, of different images, as PNGs into ``folder/pictures``.

    The crops are the squares of 64 pixels with the largest mean ΔE. Each is written of the original and of
    all models. Returns the report's entries, the worst of each model first.

    Args:
        pictures: what ``save_pictures`` has written of the same models; other images are reconstructed again.
    """
    # The images as the report shows them, the original first.
    written = {picture.index: [picture.original, *picture.reconstructions.values()] for picture in pictures}

    @cache
    def shown(index: int) -> list[PictureArray]:
        if index in written:
            return [np.asarray(Image.open(folder / file)) for file in written[index]]
        original = blocks.prepare(index)
        reconstructions = [model(original[None].to(device)).sample[0] for model in models]
        return [_picture(image, alpha=alpha) for image in (original, *reconstructions)]

    found: list[Crop] = []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for model in models:
        result = results[model.name]
        if not result.crops:
            continue
        order = result.crops["delta_e"].argsort(descending=True, stable=True)[:_CROPS]
        for position in order.tolist():
            index, begin = int(result.indices[position]), f"pictures/crop_{len(found):03d}"
            top, left = result.crops["corner"][position].tolist()
            files = [f"{begin}.png", *(f"{begin}_{number}.png" for number in range(len(models)))]
            for picture, file in zip(shown(index), files, strict=True):
                save_png(picture[top : top + CROP, left : left + CROP], folder / file)
            found.append(
                Crop(
                    model=model.name,
                    index=index,
                    name=printable_name(blocks.source.name(index)),
                    left=left,
                    top=top,
                    delta_e=result.crops["delta_e"][position].item(),
                    original=files[0],
                    reconstructions=dict(zip((each.name for each in models), files[1:], strict=True)),
                )
            )
    return found


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


def _save(image: Tensor, path: Path, *, alpha: bool) -> None:
    save_png(_picture(image, alpha=alpha), path)


def _picture(image: Tensor, *, alpha: bool) -> PictureArray:
    shown = to_images(to_uint8(image))[None, None].cpu()
    return picture_grid(shown, border=0, alpha=alpha)
