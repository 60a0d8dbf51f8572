"""Measures a model's latents over the images of a data set, on as many ranks as there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from latentae.data import ImageDataset, Sample
from latentae.data.loader import collate, epoch_order
from latentae.data.seeding import POSTERIOR
from latentae.latents.statistics import LatentStatistics, merge_over_ranks
from latentae.models import KLVAE, VQVAE

# Of a few images the crops are a matter of chance: more crops average it out.
FEWEST_VIEWS = 512

# So many views give the standard deviation to a few thousandths.
MOST_VIEWS = 16_384


class Views(torch.utils.data.Dataset[Sample]):
    """View v is image v mod N of N images as the training sees it in epoch v div N; its ``index`` is v.

    So a view is a function of (seed, v), and each view has an index of its own.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, view: int) -> Sample:
        epoch, index = divmod(view, len(self.dataset))
        sample = self.dataset[epoch, index]
        sample["index"] = view
        return sample


def view_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    seed: int = 0,
    fewest_views: int = 1,
    max_views: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> DataLoader[Sample]:
    """Returns this rank's batches of the views of whole epochs: as many epochs as give ``fewest_views``.

    Batches are dealt to the ranks in turn from one random order. So the first views are a fair sample, also
    of images that are sorted by class.

    Args:
        dataset: the images and their transform.
        batch_size: views per batch and rank; the last batch may be smaller.
        seed: of the order; the dataset has the seed of the crops.
        fewest_views: 1 is one epoch. More is of use only where the transform is random.
        max_views: a limit, over all ranks.
        rank, world_size: of this process.
        num_workers: processes that decode; 0: this one.

    Raises:
        ValueError: a number below one.
    """
    for name, value in {"batch_size": batch_size, "max_views": max_views}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    images = len(dataset)
    epochs = max(1, -(-fewest_views // images))
    views = np.concatenate([epoch * images + epoch_order(images, seed, epoch) for epoch in range(epochs)])
    views = views[:max_views]
    batches = [
        views[start : start + batch_size].tolist()
        for start in range(rank * batch_size, len(views), world_size * batch_size)
    ]
    return DataLoader(
        Views(dataset),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        # A DataLoader draws a seed when iterated: from here, so that torch's global state stays as it was.
        generator=torch.Generator(),
    )


@torch.no_grad()
def measure_latents(
    model: KLVAE | VQVAE, batches: Iterable[Any], *, seed: int = 0, scaled: bool = False
) -> LatentStatistics:
    """Returns the statistics of the latents of all ranks' images; every rank must call it.

    Latents are samples of the posterior, which denoisers are trained on. VQ models have one value there, the
    continuous one before quantization. The noise is a function of (seed, index of the image), so the result
    depends neither on the number of ranks nor on the batch size.

    Args:
        model: on the device and in the dtype to measure with.
        batches: this rank's batches, with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B]. Ranks may
            have different numbers of batches, or none.
        seed: of the posterior's noise.
        scaled: measure what ``to_latents`` gives instead of raw latents.

    Raises:
        ValueError: there are no images, or latents are not finite.
    """
    total: LatentStatistics | None = None
    own = iter(batches)
    while True:
        # Merge after each batch: all ranks meet latents that are not finite at once, and stop together.
        batch = next(own, None)
        latest = merge_over_ranks(None if batch is None else _measure_batch(model, batch, seed, scaled))
        if latest is None:
            break
        total = latest if total is None else total.merge(latest)
        if not bool(total.mean.isfinite().all()):
            raise ValueError(
                f"latents of {model.dtype} are not finite: the model's weights are broken, or too large for "
                "this dtype; measure in float32"
            )
    if total is None:
        raise ValueError("there are no images to measure the latents of")
    return total


def noise_generators(seed: int, indices: Tensor) -> list[torch.Generator]:
    """Returns a CPU generator per image for its posterior's sample: a function of (seed, index).

    diffusers takes a list of generators wherever it takes one.
    """
    # torch's generator on the CPU reads only the lower 32 bits of its seed, so they must hold all of it.
    keys = [np.random.SeedSequence(seed, spawn_key=(POSTERIOR, int(index))) for index in indices]
    return [torch.Generator().manual_seed(int(key.generate_state(1)[0])) for key in keys]


def _measure_batch(model: KLVAE | VQVAE, batch: Any, seed: int, scaled: bool) -> LatentStatistics | None:
    if not len(batch["images"]):
        return None
    images = batch["images"].to(model.device, model.dtype)
    generators: Any = noise_generators(seed, batch["indices"])
    if scaled:
        return LatentStatistics.of(model.to_latents(images, generators))
    return LatentStatistics.of(model.encode(images).latent_dist.sample(generators))
