"""A data set's images in random order, each as often as every other: what statistics are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader

from latentae.data import ImageDataset, Sample
from latentae.data.batches import collate
from latentae.data.loader import epoch_order

# With a few images the crop of each still is a matter of chance: the more crops, the less of it is left.
FEWEST_VIEWS = 512


class Views(torch.utils.data.Dataset[Sample]):
    """View v is image v mod N as epoch v div N of the training sees it, and has v as its ``index``.

    So it is a function of (seed, v), with N the number of images, and no two views share their index.
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
    """This rank's batches of the views of whole epochs, until there are ``fewest_views``.

    Batches are dealt out to the ranks in turn from one order, which is random, so that whoever stops early
    has seen a fair sample also of images that are sorted by class.

    Args:
        dataset: the images and their transform.
        batch_size: views a batch and rank; the last one may be smaller.
        seed: of the order; the dataset has that of the crops.
        fewest_views: 1 is one epoch. Only worth more where the transform is random.
        max_views: a limit, over all ranks.
        rank, world_size: which of how many processes this is.
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
