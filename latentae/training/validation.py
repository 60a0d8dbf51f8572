"""Reconstruction quality of the averaged weights in the midst of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from latentae import distributed
from latentae.data import Batch, ImageDataset, validation_loader
from latentae.evaluation.reconstruction import Distance, evaluate_reconstruction


def validate(
    model: nn.Module,
    images: ImageDataset,
    lpips: Distance,
    *,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    note_broken: Callable[[list[str]], None] | None = None,
) -> dict[str, float]:
    """What a run logs of its validation images, under the names it logs; every rank must call it.

    The ranks share the images, and get equal numbers. Nothing random is drawn, and every module is left in
    the mode, training or eval, that it was in.

    Args:
        model: called as ``model(images).sample``.
        images: the validation images.
        lpips: maps two [B, C, H, W] to [B].
        batch_size: images a rank passes at once.
        num_workers: processes a rank loads images with.
        note_broken: told of images that cannot be read, which are left out.

    Returns:
        ``validation_psnr`` in dB, ``validation_ssim``, ``validation_lpips``, and with a codebook
        ``validation_codebook_usage`` and ``validation_codebook_perplexity``.
    """
    loader = validation_loader(
        images,
        batch_size=batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=num_workers,
    )
    with evaluating(model):
        quality = asdict(evaluate_reconstruction(model, noting_broken(loader, note_broken), lpips, device))
    del quality["images"]
    return {f"validation_{name}": value for name, value in quality.items() if value is not None}


def noting_broken(loader: Iterable[Batch], note_broken: Callable[[list[str]], None] | None) -> Iterator[Any]:
    """The batches of a loader; tells what could not be read."""
    for batch in loader:
        if note_broken is not None:
            note_broken(batch["broken"])
        yield batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which all of a model is in eval mode; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
