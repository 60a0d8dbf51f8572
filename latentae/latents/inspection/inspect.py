"""Inspects the latents of a model: figures, numbers and a page in a folder. This is `latentae inspect`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latentae.data import (
    CenterCrop,
    DataSelection,
    ImageDataset,
    describe_source,
    take_evenly,
    validation_loader,
    without_broken,
)
from latentae.data.decode import check_alpha, check_channels
from latentae.data.seeding import check_seed
from latentae.evaluation.blocks import open_images
from latentae.evaluation.models import weights_sha256
from latentae.files import check_output_folder, write_together
from latentae.latents.inspection.channels import check_memory
from latentae.latents.inspection.decoding import Autoencoder
from latentae.latents.inspection.sections import NAMES, Inspected, Measured, Section, all_sections, measure
from latentae.models import KLVAE, VQVAE, ForeignAutoencoder, TinyAutoencoder, load_autoencoder
from latentae.report.page import png_uri, render

PAGE, NUMBERS = "inspect.html", "inspect.json"
_FEWEST_IMAGES = 2


def inspect(
    model: str,
    *,
    data: str,
    out: Path,
    family: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    image_size: int | None = None,
    max_images: int = 256,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
    alpha: bool = False,
    overwrite: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None],
) -> list[Section]:
    """Measures a model's latents over central crops of images, and writes figures, numbers and a page.

    ``out`` gets ``inspect.html``, ``inspect.json``, and one PNG per figure. The numbers depend on the model,
    the images and the seed alone, except for rounding.

    Args:
        model: a path or name that ``load_autoencoder`` opens.
        data: the name of the data: ``photos``, a path, or a dataset of the hub.
        out: a folder that is new or empty; with ``overwrite`` also the folder of an inspection.
        family: gives the scale and shift; see ``load_autoencoder``.
        split: None: the validation split, else the test split, else the first one.
        image_column, dataset_config, value_range, max_pixels: see ``open_source``.
        image_size: pixels of the crops; None: the model's ``sample_size``.
        max_images: the largest number of images to measure, evenly spread.
        batch_size, num_workers: images at a time, and processes that decode them.
        seed: of the posterior's noise and of the samples.
        alpha: whether images are RGBA. Colours are then resized by their alpha, and figures show a
            checkerboard.
        overwrite: whether to replace an inspection in ``out``.
        device: None is the CPU.
        say: gets messages about progress.

    Raises:
        ValueError: a model, data, number or folder that cannot be used; fewer than 2 images; latents that
            need more than 2 GB.
    """
    # The options, then the model, then the images: the cheapest checks come first
    check_seed(seed)
    _check(out, overwrite, max_images)
    autoencoder = _open_model(model, family, device or torch.device("cpu"))
    if alpha:
        check_alpha(autoencoder.config.in_channels)
    size = _image_size(autoencoder, image_size)
    selection = DataSelection(data, split or "", image_column, dataset_config, value_range, max_pixels)
    chosen, source = open_images(selection)
    say(f"the images: split {chosen!r}, {describe_source(source)}")
    dataset, broken = _dataset(
        autoencoder, take_evenly(source, max_images), CenterCrop(size, alpha=alpha), data
    )
    for reason in broken:
        say(f"note: left out, because it cannot be decoded: {reason}")
    check_memory(len(dataset) * math.prod(autoencoder.latents_shape(torch.empty(1, 1, size, size))))

    # One pass over the images, then the figures
    loader = validation_loader(dataset, batch_size=batch_size, num_workers=num_workers)
    batches = tqdm(loader, unit="batch", leave=False, disable=None)
    measured = measure(autoencoder, batches, seed=seed, alpha=alpha)
    sections = all_sections(Inspected(autoencoder, measured, seed, batch_size, alpha))
    facts = _facts(model, autoencoder, f"{data}, split {chosen}", measured, seed)
    _write(out, sections, facts)
    return sections


def _check(out: Path, overwrite: bool, max_images: int) -> None:
    """Refuses what is wrong before anything is opened."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("latentae inspect runs in one process: start it without a launcher")
    if max_images < _FEWEST_IMAGES:
        raise ValueError(f"max_images is {max_images}, but must be {_FEWEST_IMAGES} or more")
    if (out / PAGE).exists() and not overwrite:
        raise ValueError(f"{out} holds an inspection already: choose another --out, or add --overwrite")
    check_output_folder(out, "an inspection", (out / PAGE).exists())


def _open_model(model: str, family: str | None, device: torch.device) -> Autoencoder:
    autoencoder = load_autoencoder(model, family=family)
    if not isinstance(autoencoder, KLVAE | VQVAE | TinyAutoencoder | ForeignAutoencoder):
        raise ValueError(f"{model} is a {type(autoencoder).__name__}, which has no latents to inspect")
    autoencoder.to(device)
    autoencoder.eval()
    return autoencoder


def _image_size(model: Autoencoder, image_size: int | None) -> int:
    size = image_size if image_size is not None else getattr(model.config, "sample_size", None)
    if size is None:
        raise ValueError("this model does not record its sample_size: give --image-size")
    if size < model.downsampling_factor:
        factor = model.downsampling_factor
        raise ValueError(
            f"image_size is {size}, but a latent of this model stands for {factor}x{factor} pixels: give "
            f"{factor} or more"
        )
    model.check_image_size(int(size))
    return int(size)


def _dataset(model: Autoencoder, source: Any, crop: CenterCrop, data: str) -> tuple[ImageDataset, list[str]]:
    """Returns the images that can be decoded, and the reasons why others cannot."""
    channels = model.config.in_channels
    check_channels(channels)
    sound, broken = without_broken(source, channels)
    if len(sound) < _FEWEST_IMAGES:
        raise ValueError(
            f"{data} has {len(sound)} image(s) that can be used, but an inspection compares "
            f"{_FEWEST_IMAGES} or more"
        )
    return ImageDataset(sound, crop, channels), broken


def _facts(
    path: str, model: Autoencoder, data: str, measured: Measured, seed: int
) -> dict[str, str | float | None]:
    """Returns what was inspected, and how, for the page and the numbers."""
    return {
        "model": path,
        "class": type(model).__name__,
        "SHA-256 of the weights": weights_sha256(model),
        "data": data,
        "images": f"{measured.images} central crops of {measured.kept.shape[-1]} pixels",
        "latents": f"{'x'.join(map(str, model.latents_shape(measured.kept)))}, raw",
        "scaling_factor": getattr(model.config, "scaling_factor", None),
        "shift_factor": getattr(model.config, "shift_factor", None),
        "shown channels": _shown_channels(model.config.in_channels),
        "seed": seed,
    }


def _shown_channels(channels: int) -> str:
    if channels < 3:
        return "the first, in grey" if channels == 2 else "grey"
    return "RGB" if channels == 3 else f"the first three of {channels}, as red, green and blue"


def render_page(sections: list[Section], facts: dict[str, Any]) -> str:
    """Returns ``inspect.html`` with the figures embedded; ``facts`` say what was inspected and how."""
    pictures = {part.name: png_uri(part.figure.png()) for part in sections if part.figure is not None}
    return render("inspection.html", sections=sections, pictures=pictures, facts=facts)


def _write(out: Path, sections: list[Section], facts: dict[str, Any]) -> None:
    """Writes all files or none; the page last, since it marks the folder as an inspection's."""
    numbers = {part.name: part.numbers | {"remarks": list(part.remarks)} for part in sections}
    figures = {f"{part.name}.png": part.figure.png() for part in sections if part.figure is not None}
    page = render_page(sections, facts)
    texts = {
        NUMBERS: json.dumps({"inspected": facts, **numbers}, indent=1, ensure_ascii=False, allow_nan=False),
        PAGE: page,
    }
    write_together(
        out, figures | {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    )
    for name in NAMES:
        if f"{name}.png" not in figures:  # of an inspection that is replaced
            (out / f"{name}.png").unlink(missing_ok=True)
