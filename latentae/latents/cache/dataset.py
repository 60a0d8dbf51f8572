"""Cached latents as a map-style dataset for torch's DataLoader, and batches of latents of one shape."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latentae.data.seeding import ORDER, POSTERIOR, check_seed, generator
from latentae.latents.cache.folder import FLIPPED, ShardReader, check_model, check_shard, read_index
from latentae.models import LatentAutoencoder

Shape = tuple[int, int, int]


class LatentDataset(Dataset[dict[str, Any]]):
    """A cache of latents: ``dataset[i]`` is a dict of image i.

    It has ``latents`` [c, h, w] float32, ``name`` and ``index`` (i itself), and where the cache has them
    ``label`` (int), ``caption``, ``codes`` (int64 [h, w] or [depth, h, w]) and ``flipped``.

    Latents are what the model's ``to_latents`` gives: a sample of the posterior, drawn anew in each epoch as
    a function of (seed, epoch, i), shifted and scaled. So they do not depend on batches, workers or ranks.
    Shards are mapped into memory, so only the rows that are asked for are read. The dataset can be pickled
    and works in forked and spawned workers; ``set_epoch`` also reaches persistent workers.

    Args:
        folder: of the cache.
        model: if given, the cache must be of this model: a path, or what ``load_autoencoder`` returns.
        sample: draw from the posterior; False: its mode. Models without a posterior have one value.
        seed: of samples and flips, 0 or more.
        normalised: shift and scale as the model's ``to_latents`` does; False: as ``encode`` gives them.
        flip: where mirrored latents are stored, use them with probability 1/2, by (seed, epoch, i); False:
            never.

    Raises:
        ValueError: there is no finished cache; a shard is missing or cut short; the cache is of another
            model; or the scale of its latents is not known.
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
        self._patch = 1
        self._shift, self._scale = self._find_normalisation(normalised)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._readers: dict[int, ShardReader] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}, but there are {len(self)} images")
        index = int(index) % len(self)
        reader, position = self._place(index)
        # Choose the orientation, then draw the sample, by one generator.
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

    def moments(self, index: int, *, flipped: bool = False) -> Tensor:
        """Returns what is stored of an image, float32, unscaled, as ``encode`` gives it.

        Args:
            flipped: of the mirrored image, where mirrored latents are stored.

        Returns:
            [2, c, h, w] mean and standard deviation of the posterior; [1, c, h, w] of a model without one.
        """
        reader, position = self._place(index)
        names = ("mean", "std") if self.index.posterior else ("mean",)
        side = FLIPPED if flipped else ""
        return torch.stack([reader.row(f"{name}{side}", position).float() for name in names])

    def names(self) -> list[str]:
        """Returns the name of each image, in order."""
        names = []
        for entry in self.index.shards:
            reader = ShardReader(self.folder / entry.file, entry)  # not kept: its texts would stay in memory
            names += [reader.text("names", position) for position in range(entry.images)]
        return names

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, 0 or more, that samples and flips are drawn for."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, but must be 0 or more")
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that ``set_epoch`` has set; 0 at first."""
        return int(self._epoch)

    @property
    def latent_shape(self) -> Shape:
        """(c, h, w) of all latents; the shape of the codes where the cache has no latents.

        Raises:
            ValueError: latents have several shapes.
        """
        shapes = sorted({self._arranged(entry.shape) for entry in self.index.shards})
        if len(shapes) > 1:
            raise ValueError(
                f"latents have {len(shapes)} shapes, from {shapes[0]} to {shapes[-1]}: see `shapes`, and "
                "make batches by `SameShapeBatches`"
            )
        return shapes[0]  # type: ignore[return-value]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of the latents of each image."""
        return [self._arranged(entry.shape) for entry in self.index.shards for _ in range(entry.images)]

    @property
    def labels(self) -> Tensor | None:
        """int64 [n] of all images; None where the cache has no labels."""
        if self.num_classes is None:
            return None
        return torch.cat([self._reader(shard).whole("labels") for shard in range(len(self._ends))])

    @property
    def label_names(self) -> list[str] | None:
        """Names of classes 0, 1, …; None without labels, or without names."""
        return self.index.label_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return self.index.num_classes

    @property
    def has_captions(self) -> bool:
        """Whether each image has a caption, which may be empty."""
        return self.index.captions

    @property
    def image_size(self) -> int | tuple[int, int]:
        """The size that images were encoded at, in pixels: the ``image_size`` given, else (height, width)."""
        asked: int | None = self.index.settings.options["image_size"]
        if asked is not None:
            return asked
        height, width = self.index.shards[0].size
        return height if height == width else (height, width)

    @property
    def model_hash(self) -> str:
        """Hash of the model of these latents: see ``latentae.latents.cache.folder.model_hash``."""
        return str(self.index.settings.model["hash"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}  # another process maps the files itself

    def _latents(self, reader: ShardReader, position: int, side: str, rng: np.random.Generator) -> Tensor:
        latents = reader.row(f"mean{side}", position).float()
        if self.sample and self.index.posterior:
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            latents = latents + reader.row(f"std{side}", position).float() * noise
        if self._patch > 1:
            latents = F.pixel_unshuffle(latents, self._patch)
        return (latents - self._shift) * self._scale

    def _arranged(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape that latents of a stored shape have here."""
        if self._patch == 1 or len(shape) != 3:
            return tuple(shape)
        channels, height, width = shape
        return channels * self._patch**2, height // self._patch, width // self._patch

    def _place(self, index: int) -> tuple[ShardReader, int]:
        """Returns the shard that holds image ``index``, and the image's row there."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._reader(shard), index - (int(self._ends[shard - 1]) if shard else 0)

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            entry = self.index.shards[shard]
            self._readers[shard] = ShardReader(self.folder / entry.file, entry)
        return self._readers[shard]

    def _find_normalisation(self, normalised: bool) -> tuple[Tensor, Tensor]:
        """Returns shift and scale, [c, 1, 1] each."""
        normalisation = self.index.settings.normalisation
        if not normalised:
            return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if normalisation is None:
            raise ValueError(
                f"the scale of the latents in {self.folder} is not known: repeat the `latentae encode` "
                "command with --family FAMILY, which keeps the latents and records the scale; or measure the "
                "model with scripts/latent_stats.py and encode anew; or read them with normalised=False"
            )
        self._patch = int(normalisation.get("patch", [1])[0])
        shift, scale = (torch.tensor(normalisation[name])[:, None, None] for name in ("shift", "scale"))
        return shift, scale


class SameShapeBatches(Sampler[list[int]]):
    """Shuffled batches of indices of images of one shape: a ``batch_sampler`` for a DataLoader.

    Every image comes once per epoch. The last batch of each shape may be smaller. The order is a function of
    (seed, epoch).

    Args:
        shapes: of each image: ``LatentDataset.shapes``.
        batch_size: images per batch, 1 or more.
        seed: of the order, 0 or more.
        drop_last: leave out smaller batches.
    """

    def __init__(
        self, shapes: Sequence[Hashable], batch_size: int, *, seed: int = 0, drop_last: bool = False
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        check_seed(seed)
        groups: dict[Hashable, list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        self._groups = [np.array(group) for group in groups.values()]
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next order is drawn for."""
        self.epoch = epoch

    def __len__(self) -> int:
        spare = 0 if self.drop_last else self.batch_size - 1
        return sum((len(group) + spare) // self.batch_size for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        rng = generator(self.seed, ORDER, self.epoch)
        batches: list[list[int]] = []
        for group in self._groups:
            shuffled = rng.permutation(group).tolist()
            batches += [
                shuffled[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)
            ]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for position in rng.permutation(len(batches)):
            yield batches[position]
