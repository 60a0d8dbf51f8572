"""Cached latents as a map-style dataset, for torch's plain DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from latentae.data.seeding import POSTERIOR, check_seed, generator
from latentae.latents.cache.encoding import FLIPPED
from latentae.latents.cache.folder import read_index
from latentae.latents.cache.matching import check_model
from latentae.latents.cache.shard import ShardReader, check_shard
from latentae.models import LatentAutoencoder

Shape = tuple[int, int, int]


class LatentDataset(Dataset[dict[str, Any]]):
    """``dataset[i]`` is a dict of image i: ``latents`` [c, h, w] float32, ``name``, ``index`` (i itself), and
    where the cache has them ``label`` (int), ``caption``, ``codes`` (int64 [h, w] or [depth, h, w]) and
    ``flipped``.

    Latents are what ``to_latents`` of the model gives: a sample of the posterior, drawn anew in each epoch as
    a function of (seed, epoch, i), shifted and scaled. So they do not depend on batches, workers or ranks.
    Shards are mapped into memory, and only what is asked for is read. It can be pickled, and works in workers
    that are forked or spawned; ``set_epoch`` reaches workers that live on.

    Args:
        folder: of the cache.
        model: where given, the cache must be of this model: a path, or what ``load_autoencoder`` returns.
        sample: draw from the posterior; False: its mode. Models without a posterior have one value.
        seed: of samples and flips, 0 or more.
        normalised: shift and scale as the model's ``to_latents`` does; False: as ``encode`` gives them.
        flip: where mirrored latents are stored, take them in place of the others with probability 1/2, by
            (seed, epoch, i); False: never.

    Raises:
        ValueError: there is no finished cache; a shard is missing or cut short; it is of another model; or
            the scale of its latents is not known.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | Path | LatentAutoencoder | None = None,
        *,
        sample: bool = True,
        seed: int = 0,
        normalised: bool = True,
        flip: bool = True,
    ) -> None:
        check_seed(seed)
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.sample = sample
        self.seed = seed
        self.flip = flip and self.index.settings.options["flips"]
        for entry in self.index.shards:
            check_shard(self.folder / entry.file, entry)
        if model is not None:
            check_model(self.index.settings, model, self.folder)
        self._ends = np.cumsum([entry.images for entry in self.index.shards])
        self._shift, self._scale = self._find_normalisation(normalised)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._readers: dict[int, ShardReader] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}, but there are {len(self)} images")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[shard - 1]) if shard else 0)
        reader = self._reader(shard)
        rng = generator(self.seed, POSTERIOR, self.epoch, index)
        flipped = bool(rng.random() < 0.5) and self.flip
        side = FLIPPED if flipped else ""
        item: dict[str, Any] = {"name": reader.text("names", position), "index": index}
        if "mean" in reader.names:
            item["latents"] = self._latents(reader, position, side, rng)
        if "codes" in reader.names:
            item["codes"] = reader.row(f"codes{side}", position).long()
        if "labels" in reader.names:
            item["label"] = int(reader.row("labels", position))
        if "captions" in reader.names:
            item["caption"] = reader.text("captions", position)
        if self.flip:
            item["flipped"] = flipped
        return item

    def set_epoch(self, epoch: int) -> None:
        """From now on samples and flips are those of this epoch, 0 or more."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, but must be 0 or more")
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """What ``set_epoch`` was given last; 0 at first."""
        return int(self._epoch)

    @property
    def latent_shape(self) -> Shape:
        """(c, h, w) of all latents; of codes their shape, where there are no latents.

        Raises:
            ValueError: they are of several sizes.
        """
        shapes = sorted({tuple(entry.shape) for entry in self.index.shards})
        if len(shapes) > 1:
            raise ValueError(
                f"latents have {len(shapes)} shapes, from {shapes[0]} to {shapes[-1]}: see `shapes`, and "
                "make batches by `SameShapeBatches`"
            )
        return shapes[0]  # type: ignore[return-value]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The latents' shape of each image."""
        return [tuple(entry.shape) for entry in self.index.shards for _ in range(entry.images)]

    @property
    def labels(self) -> Tensor | None:
        """int64 [n] of all images; None where the cache has no labels."""
        if self.num_classes is None:
            return None
        return torch.cat([self._reader(shard).whole("labels") for shard in range(len(self._ends))])

    @property
    def label_names(self) -> list[str] | None:
        """Of classes 0, 1, …; None where there are no labels, or they have no names."""
        return self.index.label_names

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; None where there are no labels."""
        return self.index.num_classes

    @property
    def has_captions(self) -> bool:
        """Whether each image has a caption, perhaps an empty one."""
        return self.index.captions

    @property
    def image_size(self) -> int | tuple[int, int]:
        """What the images were encoded at, in pixels: the side that was asked for, else (height, width)."""
        asked: int | None = self.index.settings.options["image_size"]
        if asked is not None:
            return asked
        height, width = self.index.shards[0].size
        return height if height == width else (height, width)

    @property
    def model_hash(self) -> str:
        """Of the model that the latents are of: see ``latentae.latents.cache.identity.model_hash``."""
        return str(self.index.settings.model["hash"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}  # a map of a file is made anew in another process

    def _latents(self, reader: ShardReader, position: int, side: str, rng: np.random.Generator) -> Tensor:
        latents = reader.row(f"mean{side}", position).float()
        if self.sample and self.index.posterior:
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            latents = latents + reader.row(f"std{side}", position).float() * noise
        return (latents - self._shift) * self._scale

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            entry = self.index.shards[shard]
            self._readers[shard] = ShardReader(self.folder / entry.file, entry)
        return self._readers[shard]

    def _find_normalisation(self, normalised: bool) -> tuple[Tensor, Tensor]:
        """Shift and scale, [c, 1, 1] each."""
        normalisation = self.index.settings.normalisation
        if not normalised:
            return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if normalisation is None:
            raise ValueError(
                f"the scale of the latents in {self.folder} is not known: repeat the `latentae encode` "
                "command with --family FAMILY, which keeps the latents and records the scale; or measure the "
                "model with scripts/latent_stats.py and encode anew; or read them with normalised=False"
            )
        shift, scale = (torch.tensor(normalisation[name])[:, None, None] for name in ("shift", "scale"))
        return shift, scale
