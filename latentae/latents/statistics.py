"""Mean and standard deviation of a model's latents over the images of a data set, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from latentae import distributed
from latentae.data import ImageDataset, Sample
from latentae.data.loader import collate, epoch_order
from latentae.data.seeding import POSTERIOR, torch_generator
from latentae.devices import to_float64_on_cpu
from latentae.models import Autoencoder


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Moments of latents [B, c, h, w], in float64 on the CPU.

    Sums are kept around the present mean and moved when it moves (Chan, Golub and LeVeque 1983, "Algorithms
    for computing the sample variance", equation 2.1). So a mean far from zero costs no digits, and the result
    does not depend on how the images were divided, except for rounding.

    Attributes:
        images: number of images.
        positions: Σ h·w over the images, the number of values in each channel.
        mean: [c].
        squares: [c] the sum of squared deviations from ``mean``.
        between: [c] the part of ``squares`` that lies between images: Σ n_i (mean_i − mean)² over the images,
            where image i has n_i positions.
    """

    images: int
    positions: int
    mean: Tensor
    squares: Tensor
    between: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> LatentStatistics:
        """Returns the statistics of a batch [B, c, h, w] on any device, of any float dtype; B, h, w ≥ 1."""
        values = to_float64_on_cpu(latents.detach()).flatten(2)
        mean = values.mean(dim=(0, 2))
        values = values - mean[:, None]
        return cls(
            images=len(values),
            positions=len(values) * values.shape[2],
            mean=mean,
            squares=values.square().sum(dim=(0, 2)),
            between=values.shape[2] * values.mean(dim=2).square().sum(dim=0),
        )

    def merge(self, other: LatentStatistics) -> LatentStatistics:
        """Returns the statistics of the union of both sets of images.

        Raises:
            ValueError: another number of channels.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"statistics of {len(self.mean)} and of {len(other.mean)} latent channels cannot be merged"
            )
        positions = self.positions + other.positions
        difference = other.mean - self.mean
        moved = difference.square() * (self.positions * other.positions / positions)
        return LatentStatistics(
            images=self.images + other.images,
            positions=positions,
            mean=self.mean + difference * (other.positions / positions),
            squares=self.squares + other.squares + moved,
            between=self.between + other.between + moved,
        )

    @property
    def variance(self) -> Tensor:
        """[c] the variance of each channel, divided by the number of values (not by one less)."""
        return self.squares / self.positions

    @property
    def std(self) -> Tensor:
        """[c] the standard deviation of each channel."""
        return self.variance.sqrt()

    @property
    def centred_std(self) -> float:
        """Standard deviation of all values around their channel's mean: √ of the channels' mean variance."""
        return math.sqrt(self.variance.mean().item())

    @property
    def global_mean(self) -> float:
        """Mean of all values."""
        return self.mean.mean().item()

    @property
    def global_std(self) -> float:
        """Standard deviation of all values around ``global_mean``; it includes the channels' differences."""
        return math.sqrt((self.variance + (self.mean - self.global_mean).square()).mean().item())

    @property
    def std_between_images(self) -> Tensor:
        """[c] the standard deviation of the images' means, each weighted by its number of positions."""
        return (self.between / self.positions).sqrt()


def merge_over_ranks(own: LatentStatistics | None) -> LatentStatistics | None:
    """Merges all ranks' statistics in rank order, to the same bits on each rank; every rank calls it.

    Args:
        own: of this rank's images; None where it has none.

    Returns:
        None where no rank has images.
    """
    row = torch.zeros(0, dtype=torch.float64)
    if own is not None:
        # One row that begins with the number of channels, which a rank without images does not know.
        head = torch.tensor([len(own.mean), own.images, own.positions], dtype=torch.float64)
        row = torch.cat([head, own.mean, own.squares, own.between])
    gathered = distributed.all_gather_concat(row)
    if not len(gathered):
        return None
    channels = int(gathered[0].item())
    merged: LatentStatistics | None = None
    for row in gathered.view(-1, 3 + 3 * channels):
        head, mean, squares, between = row.split([3, channels, channels, channels])
        theirs = LatentStatistics(int(head[1]), int(head[2]), mean, squares, between)
        merged = theirs if merged is None else merged.merge(theirs)
    return merged


# With few images, single crops matter: more crops average this out.
FEWEST_VIEWS = 512

# This number of views gives the standard deviation to a few thousandths.
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
    for name, value in (("batch_size", batch_size), ("max_views", max_views)):
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
    model: Autoencoder, batches: Iterable[Any], *, seed: int = 0, scaled: bool = False
) -> LatentStatistics:
    """Returns the statistics of the latents of all ranks' images; every rank must call it.

    Latents are samples of the posterior, which denoisers are trained on. VQ models have one value there, the
    continuous one before quantization. A FLUX.2 VAE is measured in the 2×2 patches that its ``bn``
    normalises. The noise is a function of (seed, index of the image), so the result depends neither on the
    number of ranks nor on the batch size.

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
    # Merge after each batch: all ranks meet latents that are not finite at once, and stop together.
    while latest := merge_over_ranks(_measure_batch(model, next(own, None), seed, scaled)):
        total = latest if total is None else total.merge(latest)
        if not bool(total.mean.isfinite().all()):
            raise ValueError(
                f"latents of {model.dtype} are not finite: the model's weights are broken, or too large for "
                "this dtype; measure in float32"
            )
    if total is None:
        raise ValueError("there are no images to measure the latents of")
    return total


def noise_generators(seed: int, indices: Iterable[Any]) -> list[torch.Generator]:
    """Returns a CPU generator for the posterior's sample of each image: a function of (seed, index).

    diffusers takes a list of generators wherever it takes one.
    """
    return [torch_generator(seed, POSTERIOR, int(index)) for index in indices]


def _measure_batch(model: Autoencoder, batch: Any, seed: int, scaled: bool) -> LatentStatistics | None:
    if batch is None or not len(batch["images"]):
        return None
    images = batch["images"].to(model.device, model.dtype)
    generators: Any = noise_generators(seed, batch["indices"])
    if scaled:
        return LatentStatistics.of(model.to_latents(images, generators))
    posterior = model.encode(model.pad_for_denoiser(images)).latent_dist
    return LatentStatistics.of(model.arrange(posterior.sample(generators)))
