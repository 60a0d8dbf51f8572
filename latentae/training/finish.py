"""The end of a run: the averaged weights calibrated, measured and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from latentae import distributed
from latentae.config import RunConfig
from latentae.data import ImageDataset, validation_loader
from latentae.export import export_diffusers
from latentae.files import written_aside
from latentae.latents.calibration import calibrate_on
from latentae.models import KLVAE, VQVAE
from latentae.training.checkpoint import needing_disk
from latentae.training.folder import RunFolder
from latentae.training.validation import (
    Distance,
    ReconstructionQuality,
    evaluate_reconstruction,
    noting_broken,
)


def calibrate_and_measure(
    model: KLVAE | VQVAE,
    training_images: ImageDataset,
    validation_images: ImageDataset,
    lpips: Distance,
    config: RunConfig,
    *,
    device: torch.device,
    say: Callable[[str], None],
    measured: Mapping[str, float] | None = None,
    note_broken: Callable[[list[str]], None] | None = None,
) -> dict[str, Any]:
    """Sets the scale of the latents from the training images, then measures on the validation images.

    With a frozen encoder the scale stays what it was. Every rank must call it.

    Args:
        model: changed in place, its pixels not.
        lpips: maps two [B, C, H, W] to [B].
        say: told what a person should know of the calibration.
        measured: what ``validate`` has given for this very model, which is then not measured again: a scale
            changes its pixels by no more than rounding. None or empty: nothing.
        note_broken: told of validation images that cannot be read, which are left out.

    Returns:
        numbers for the run's summary; the scale is None where it could not be measured.
    """
    if config.freeze_encoder:
        scale = {name: model.config[name] for name in ("scaling_factor", "shift_factor")}
        scale["scale_source"] = "of the pretrained model"
    else:
        scale = _calibrate(model, training_images, config, say)
    if measured:
        numbers = {name.removeprefix("validation_"): value for name, value in measured.items()}
        quality = ReconstructionQuality(images=len(validation_images), **numbers)
    else:
        quality = _measure(model, validation_images, lpips, config, device, note_broken)
    return {**asdict(quality), **scale}


def _measure(
    model: KLVAE | VQVAE,
    images: ImageDataset,
    lpips: Distance,
    config: RunConfig,
    device: torch.device,
    note_broken: Callable[[list[str]], None] | None,
) -> ReconstructionQuality:
    loader = validation_loader(
        images,
        batch_size=config.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return evaluate_reconstruction(model, noting_broken(loader, note_broken), lpips, device)


def _calibrate(
    model: KLVAE | VQVAE, training_images: ImageDataset, config: RunConfig, say: Callable[[str], None]
) -> dict[str, float | str | None]:
    """Measures and sets the scale; returns it for the summary."""
    try:
        calibration = calibrate_on(
            model,
            training_images,
            batch_size=config.batch_size,
            seed=config.seed,
            num_workers=config.data.num_workers,
        )
    except ValueError as error:
        # Latents that do not vary or are not finite are no reason to lose the run.
        say(f"the latents' scale could not be measured: {error}")
        return {"scaling_factor": None, "shift_factor": None}
    for remark in calibration.remarks:
        say(f"note: {remark}")
    return {
        "scaling_factor": calibration.scaling_factor,
        "shift_factor": calibration.shift_factor,
        "scale_source": "measured on the training images",
    }


def export_run(model: KLVAE | VQVAE, folder: RunFolder) -> None:
    """Puts the model into the run's ``model`` folder, as the stock class wherever that can hold it.

    Raises:
        RunError: it cannot be written; a model that stood there before still does.
    """
    with needing_disk(folder.model), written_aside(folder.model) as aside:
        if model.fits_stock_class:
            export_diffusers(model, aside)
        else:
            model.save_pretrained(aside)
