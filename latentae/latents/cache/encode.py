"""Encodes a set of images into a folder of latents: the work of `latentae encode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentae import distributed
from latentae.data import (
    BrokenImageError,
    DataSelection,
    FolderSource,
    ImageSource,
    SubsetSource,
    describe_source,
    take_evenly,
)
from latentae.data.annotations import Annotations, read_annotations
from latentae.data.decode import check_alpha, check_channels
from latentae.data.metadata import unread_columns
from latentae.distributed import on_main
from latentae.files import remove_unfinished
from latentae.latents.cache.folder import (
    SHARDS,
    CacheIndex,
    CacheSettings,
    ShardReader,
    check_folder,
    data_hash,
    describe_shard,
    is_whole,
    model_hash,
    normalisation_of,
    read_index,
    recorded_options,
)
from latentae.latents.cache.planning import (
    CacheOptions,
    ShardPlan,
    check_at_least,
    default_shard_size,
    forget_sizes,
    plan_cache,
)
from latentae.latents.cache.work import CacheImages, ShardEncoder, check_codes
from latentae.lock import FolderLock
from latentae.models import LatentAutoencoder, load_autoencoder


@dataclass(frozen=True)
class CacheReport:
    """A finished cache.

    Attributes:
        images, shards, bytes: how many images it holds, in how many files, of how many bytes together.
        encoded: images that this call has encoded, on all ranks; the others were there before.
        seconds: the time that encoding took.
        skipped: ``name: reason`` of images that could not be decoded.
    """

    folder: Path
    images: int
    shards: int
    bytes: int
    encoded: int
    seconds: float
    skipped: list[str]

    @property
    def bytes_per_image(self) -> float:
        return self.bytes / self.images

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:.1f} MiB, {self.bytes_per_image:,.0f} bytes an image"
        where = f"{self.images} images in {self.shards} shard(s), {size}: {self.folder}"
        if not self.encoded:
            return f"complete, nothing to do: {where}"
        return f"{where}; {self.encoded} encoded now, {self.encoded / max(self.seconds, 1e-9):.1f} a second"


@dataclass(frozen=True)
class DataRequest:
    """The images to encode, and what to read along with them.

    Attributes:
        images: a source that is open, or the selection of one.
        annotations: whether labels and captions are read.
        label_column, caption_column: see ``read_annotations``.
        limit: the number of images, evenly spread; None: all.

    Raises:
        ValueError: a column is named although ``annotations`` is false, or ``limit`` is below 1.
    """

    images: DataSelection | ImageSource
    annotations: bool = True
    label_column: str | None = None
    caption_column: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("label_column", "caption_column"):
            if getattr(self, name) is not None and not self.annotations:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but annotations is false, so nothing is read from "
                    "it: leave one of them out"
                )
        check_at_least(1, limit=self.limit)

    @property
    def name(self) -> str:
        """The name of the images in messages and in the cache's settings."""
        if isinstance(self.images, DataSelection):
            return f"{self.images.name} ({self.images.split})"
        return str(getattr(self.images, "folder", f"a {type(self.images).__name__}"))

    def open(self) -> tuple[ImageSource, Annotations]:
        """Opens the images and reads their annotations; every rank must call it.

        Raises:
            ValueError: there are no such images, or no such labels or captions.
        """
        with distributed.main_first():  # the first rank downloads and indexes, the others find it done
            source = self.images.open() if isinstance(self.images, DataSelection) else self.images
            if len(source) == 0:
                raise ValueError("the source has no images")
            if self.limit is not None:
                source = take_evenly(source, self.limit)
            if not self.annotations:
                return source, Annotations()
            columns = {"label_column": self.label_column, "caption_column": self.caption_column}
            return source, read_annotations(source, **columns)

    def unread(self, source: ImageSource) -> str | None:
        """Returns a sentence about columns beside selected images that ``open`` leaves out; None: no such."""
        whole = source.source if isinstance(source, SubsetSource) else source
        wanted = self.annotations and self.caption_column is None and isinstance(self.images, DataSelection)
        return unread_columns(whole) if wanted and isinstance(whole, FolderSource) else None


def encode_dataset(
    model: str | Path | LatentAutoencoder,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    annotations: bool = True,
    label_column: str | None = None,
    caption_column: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
    family: str | None = None,
    image_size: int | None = None,
    sizes: str = "crop",
    flips: bool = False,
    codes: bool = False,
    latents: bool = True,
    dtype: str = "float16",
    precision: str = "float32",
    broken: str = "skip",
    shard_size: int | None = None,
    seed: int = 0,
    alpha: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CacheReport:
    """Encodes images into a folder that ``LatentDataset`` reads; every rank must call it.

    A call that was interrupted continues where it stopped. The files do not depend on the number of ranks.
    The batch size can change the last bit of what the encoder computes.

    Args:
        model: a path that ``load_autoencoder`` opens, or the model that it returns. The model is put into
            eval mode and moved to the device.
        images: the images, or their name as ``open_source`` takes it.
        out: folder of the cache: new, empty, or a cache of the same model, images and options.
        split, image_column, dataset_config, value_range, max_pixels: see ``open_source``; only for a name.
        annotations, label_column, caption_column, limit: see ``DataRequest``.
        batch_size: images per batch, on each rank.
        workers: processes that decode, for each rank; 0: none.
        family: of a model that is opened by its path: the family that gives scale and shift, as
            ``load_autoencoder`` takes it.
        image_size: pixels; None: the model's ``sample_size``.
        sizes, flips, codes, latents, dtype, precision, broken, seed, alpha: see ``CacheOptions``.
        shard_size: images per shard; None: see ``default_shard_size``.
        device: to encode on; None: the model's device.
        say: receives progress and broken images, on every rank.

    Raises:
        ValueError: a model, data, folder or option that cannot be used, before anything is written.
        CacheError: latents that are not finite; broken images where ``broken`` is ``stop``.
        FullDiskError: no room for a shard; the finished ones stay.
    """
    chosen: DataSelection | ImageSource = (
        DataSelection(str(images), split, image_column, dataset_config, value_range, max_pixels)
        if isinstance(images, str | Path)
        else images
    )
    request = DataRequest(chosen, annotations, label_column, caption_column, limit)
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, workers=workers)
    autoencoder, path = _open_model(model, family, device)
    if image_size is None:
        image_size = autoencoder.fixed_size if sizes == "refuse" else _usual_size(autoencoder)
    options = CacheOptions(
        image_size=image_size,
        sizes=sizes,
        flips=flips,
        codes=codes,
        latents=latents,
        dtype=dtype,
        precision=precision,
        broken=broken,
        seed=seed,
        shard_size=shard_size,
        alpha=alpha,
    )
    return _encode(autoencoder, path, request, Path(out), options, batch_size, workers, say)


def _open_model(
    model: str | Path | LatentAutoencoder, family: str | None, device: torch.device | None
) -> tuple[LatentAutoencoder, str]:
    """Returns the model in eval mode on the device, and the path it came from."""
    path = str(model) if isinstance(model, str | Path) else "a model in memory"
    opened: Any = model
    if isinstance(model, str | Path):
        with distributed.main_first():  # the first rank fetches the model, the others find it
            opened = load_autoencoder(model, family=family)
    elif family is not None:
        raise ValueError(f"family is {family!r}, but the model is open already: give it to load_autoencoder")
    if not isinstance(opened, LatentAutoencoder):
        raise ValueError(f"model is a {type(opened).__name__}: give a path, or what load_autoencoder returns")
    network: Any = opened
    network.eval().to(device or network.device)
    return opened, path


def _usual_size(model: LatentAutoencoder) -> int:
    size = model.config.get("sample_size")
    if not isinstance(size, int):
        raise ValueError(f"a {type(model).__name__} has no sample_size: give image_size, in pixels")
    return size


def _encode(
    model: LatentAutoencoder,
    path: str,
    request: DataRequest,
    folder: Path,
    options: CacheOptions,
    batch_size: int,
    workers: int,
    say: Callable[[str], None],
) -> CacheReport:
    # Check the model and open the data: nothing is written before both are known to be right.
    check_codes(model, options)
    if options.image_size is not None:
        model.check_image_size(options.image_size)
    if model.fixed_size is not None and options.sizes == "bucket":
        raise ValueError(
            f"sizes is 'bucket', but {type(model).__name__} takes images of one size alone: use sizes='crop'"
        )
    normalisation = normalisation_of(model)
    if options.latents and normalisation is None:
        say(f"note: {_about_scale(options)}")
    channels = model.config.in_channels
    check_channels(channels)
    if options.alpha:
        check_alpha(channels)
    source, annotations = request.open()
    if unread := request.unread(source):
        say(f"note: {unread}")

    # A cache that was begun keeps its size of shards.
    if options.shard_size is None:
        usual = default_shard_size(len(source), options.image_size, model)
        options = replace(options, shard_size=recorded_options(folder).get("shard_size", usual))

    # Record what the latents depend on; refuse a folder that was begun with something else.
    settings = CacheSettings(
        model={"hash": model_hash(model, codes=options.codes), "class": type(model).__name__, "path": path},
        normalisation=normalisation,
        data={
            "hash": data_hash(source, annotations, channels),
            "name": request.name,
            "images": len(source),
            "caption_column": request.caption_column,
        },
        options=options.recorded(),
    )
    check_folder(folder, settings)
    distributed.barrier()  # nobody writes before everybody has looked
    on_main(lambda: folder.mkdir(parents=True, exist_ok=True), f"write to {folder}")
    with FolderLock(folder, "out").held(say):
        check_folder(folder, settings)  # once more: another process may have begun a cache
        distributed.barrier()
        on_main(lambda: _begin(folder, settings), f"write to {folder}")

        # Find out which shards are missing.
        shards = plan_cache(source, model, options, workers=workers, folder=folder)
        missing = [shard for shard in shards if not is_whole(folder / shard.file)]
        if len(missing) < len(shards):
            say(f"going on: {len(shards) - len(missing)} of {len(shards)} shards are there")
        say(f"the images: {describe_source(source)}")
        distributed.barrier()

        # Encode them.
        started = time.monotonic()
        crop = options.sizes != "refuse"
        given: Any = {"broken": options.broken, "seed": options.seed, "alpha": options.alpha}
        images = CacheImages(source, channels, crop=crop, **given)
        encoder = ShardEncoder(model, images, annotations, folder, options, say)
        encoder.encode(missing, batch_size=batch_size, workers=workers)
        seconds = time.monotonic() - started

        # Write the index last: a folder with an index is a finished cache.
        on_main(lambda: forget_sizes(folder), f"write to {folder}")
        encoded = sum(len(shard.indices) for shard in missing)
        return finish_cache(folder, settings, shards, annotations, encoded=encoded, seconds=seconds)


def _about_scale(options: CacheOptions) -> str:
    """Returns a remark for latents of an unknown scale."""
    size = "" if options.image_size is None else f" --image-size {options.image_size}"
    return (
        "the scale of this model's latents is not known, so LatentDataset will read this cache with "
        "normalised=False only. For a model of a known family, repeat this command with --family "
        f"FAMILY{size}, now or later: it keeps the latents that are there and records the scale. For any "
        "other model, measure the scale first: `latentae stats MODEL --data NAME --out FOLDER`, and encode "
        "with the model in FOLDER"
    )


def _begin(folder: Path, settings: CacheSettings) -> None:
    remove_unfinished(folder)
    if not any(folder.glob(SHARDS)):
        forget_sizes(folder)  # they may be of other images
    settings.write(folder)


def finish_cache(
    folder: Path,
    settings: CacheSettings,
    shards: Sequence[ShardPlan],
    annotations: Annotations,
    *,
    encoded: int,
    seconds: float,
) -> CacheReport:
    """Writes the index on rank 0 and returns a summary of the cache; every rank must call it.

    Raises:
        ValueError: a shard is missing, since ranks see different folders.
        BrokenImageError: no shard holds an image.
    """
    # Read the entries from the shards themselves: some were written by an earlier call or another rank.
    missing = [shard.file for shard in shards if not is_whole(folder / shard.file)]
    if missing:
        raise ValueError(
            f"{folder / missing[0]} is missing: with several processes all must see the same output folder"
        )
    described = [describe_shard(folder / shard.file, shard.size) for shard in shards]
    entries = [entry for entry, _ in described if entry.images]
    # Name each broken image once: it may also have been drawn to replace another one.
    skipped = list(dict.fromkeys(reason for _, reasons in described for reason in reasons))
    if not entries:
        raise BrokenImageError(f"none of {len(skipped)} images can be decoded, the first being {skipped[0]}")

    labels, names = annotations.labels, annotations.label_names
    index = CacheIndex(
        settings=settings,
        shards=entries,
        posterior="std" in ShardReader(folder / entries[0].file, entries[0]).names,
        label_names=names,
        num_classes=None if labels is None else len(names) if names else int(labels.max()) + 1,
        captions=annotations.captions is not None,
        skipped=skipped,
    )
    on_main(lambda: index.write(folder), f"write to {folder}")

    written = read_index(folder)
    size = sum(shard.bytes for shard in written.shards)
    return CacheReport(folder, written.images, len(written.shards), size, encoded, seconds, written.skipped)
