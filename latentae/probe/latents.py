"""A model's cached latents, as a denoiser and its pipeline want them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentae.latents.cache import LatentDataset, encode_dataset
from latentae.models import LatentAutoencoder
from latentae.probe.batches import LatentBatch, collect
from latentae.probe.denoiser import NULL_LABEL
from latentae.probe.images import ProbeImages
from latentae.probe.pipeline import check_labels
from latentae.probe.request import ProbeRequest

_MOST_MEASURED = 2048
_NOTHING = 1e-8  # the variance of a channel, where all of them together have about 1, that is but rounding


@dataclass(frozen=True)
class ProbeLatents:
    """What a denoiser is trained and measured on.

    Attributes:
        training: the training images' latents, posteriors sampled anew each epoch.
        held_out: the held-out images' latents, one sample each.
        labels: int64 [n] of the training images; None where the probe has no classes.
        label_names: of the classes.
        variance: [c] of the training latents' channels.
    """

    training: LatentDataset
    held_out: LatentBatch
    labels: Tensor | None
    label_names: list[str] | None
    variance: Tensor


def cache_latents(
    model: LatentAutoencoder,
    images: ProbeImages,
    folder: Path,
    request: ProbeRequest,
    device: torch.device,
    offset: Tensor,
    say: Callable[[str], None],
) -> ProbeLatents:
    """Encodes what is not encoded yet, and opens it.

    Args:
        offset: [c] added to the held-out latents, as ``LatentBatches`` does to the others.

    Raises:
        ValueError: images or a model that cannot be used, or latents that do not vary.
    """
    opened = []
    for name, source in (("training", images.training), ("held_out", images.held_out)):
        encode_dataset(
            model,
            source,
            folder / name,
            annotations=not request.unconditional,
            batch_size=request.batch_size,
            workers=request.num_workers,
            image_size=request.image_size,
            device=device,
            say=say,
            flips=request.flips and name == "training",
        )
        opened.append(LatentDataset(folder / name, seed=request.seed))
    training, held_out = opened
    count = min(len(training), _MOST_MEASURED)
    spread = [position * len(training) // count for position in range(count)]
    variance = collect(training, spread).latents.var(dim=(0, 2, 3))
    if not bool((variance > _NOTHING).all()):
        constant = (variance <= _NOTHING).nonzero().flatten().tolist()
        raise ValueError(f"its latent channel(s) {constant} do not vary over the images: nothing is in them")
    labels = training.labels
    if training.num_classes is not None:
        check_labels(training.num_classes)
    batch = collect(held_out, list(range(len(held_out))), offset)
    if labels is not None:
        batch = LatentBatch(batch.latents, _same_classes(held_out, training, batch.labels))
    return ProbeLatents(training, batch, labels, training.label_names, variance)


def _same_classes(held_out: LatentDataset, training: LatentDataset, labels: Tensor) -> Tensor:
    """The held-out images' labels as the training's numbers; none for classes that it does not have."""
    if held_out.labels is None:
        return torch.full_like(labels, NULL_LABEL)
    if held_out.label_names == training.label_names:
        return torch.where(labels < (training.num_classes or 0), labels, NULL_LABEL)
    numbers = {name: number for number, name in enumerate(training.label_names or [])}
    names = held_out.label_names or []
    return torch.tensor(
        [
            numbers.get(names[label], NULL_LABEL) if label < len(names) else NULL_LABEL
            for label in labels.tolist()
        ]
    )
