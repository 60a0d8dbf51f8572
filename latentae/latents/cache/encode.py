"""An image set to latents on disk: what `latentae encode` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from latentae import distributed
from latentae.data import ImageSource, describe_source
from latentae.data.decode import check_channels
from latentae.distributed import on_main
from latentae.files import remove_unfinished
from latentae.latents.cache.encoding import check_codes
from latentae.latents.cache.finishing import finish
from latentae.latents.cache.folder import (
    SHARDS,
    CacheSettings,
    check_folder,
    recorded_options,
    write_settings,
)
from latentae.latents.cache.identity import data_hash, model_hash, normalisation_of
from latentae.latents.cache.loading import CacheImages
from latentae.latents.cache.measuring import forget_sizes
from latentae.latents.cache.options import CacheOptions, default_shard_size
from latentae.latents.cache.planning import plan
from latentae.latents.cache.report import CacheReport
from latentae.latents.cache.request import DataRequest
from latentae.latents.cache.shard import is_whole
from latentae.latents.cache.work import Work
from latentae.models import LatentAutoencoder, load_autoencoder


def encode_dataset(
    model: str | Path | LatentAutoencoder,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
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
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda text: None,
    **reading: Any,
) -> CacheReport:
    """Encodes images into a folder that ``LatentDataset`` reads; every rank must call it.

    What was begun in the folder goes on where it stopped. The files do not depend on the number of ranks; the
    size of batches can change the last bit of what the encoder computes.

    Args:
        model: what ``load_autoencoder`` opens or returns; it is put into eval mode, and on the device.
        images: the images, or their name as ``open_source`` takes it.
        out: folder of the cache: new, empty, or a cache of the same model, images and options.
        batch_size: images at a time, on each rank.
        workers: processes that decode, for each rank; 0: none.
        family: of a model that is opened by its path: what its scale and shift are taken from, as
            ``load_autoencoder`` takes it.
        image_size: pixels; None: the model's ``sample_size``.
        sizes, flips, codes, latents, dtype, precision, broken, seed: see ``CacheOptions``.
        shard_size: images a shard; None: see ``default_shard_size``.
        device: to encode on; None: where the model is.
        say: told of progress and of broken images, on every rank.
        reading: ``split``, ``limit``, ``annotations``, ``label_column``, …: see ``DataRequest``.

    Raises:
        ValueError: a model, data, folder or option that cannot be used, before anything is written.
        CacheError: latents that are not finite; broken images where ``broken`` is ``stop``.
        FullDiskError: no room for a shard; the finished ones stay.
    """
    request = DataRequest(images, **reading)
    for name, value, lowest in (
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("limit", request.limit, 1),
    ):
        if value is not None and value < lowest:
            raise ValueError(f"{name} is {value}, but must be {lowest} or more")
    autoencoder, path = _open_model(model, family, device)
    options = CacheOptions(
        image_size=_usual_size(autoencoder) if image_size is None and sizes != "refuse" else image_size,
        sizes=sizes,
        flips=flips,
        codes=codes,
        latents=latents,
        dtype=dtype,
        precision=precision,
        broken=broken,
        seed=seed,
        shard_size=shard_size,
    )
    return _encode(autoencoder, path, request, Path(out), options, batch_size, workers, say)


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
    check_codes(model, options)
    normalisation = normalisation_of(model)
    if options.latents and normalisation is None:
        say(f"note: {_about_scale(options)}")
    channels = model.config.in_channels
    check_channels(channels)
    source, annotations = request.open()
    if unread := request.unread(source):
        say(f"note: {unread}")
    if options.shard_size is None:
        usual = default_shard_size(len(source), options.image_size, model)
        options = replace(options, shard_size=recorded_options(folder).get("shard_size", usual))
    settings = CacheSettings(
        model={"hash": model_hash(model, codes=options.codes), "class": type(model).__name__, "path": path},
        normalisation=normalisation,
        data={
            "hash": data_hash(source, annotations, channels),
            "name": request.name,
            "images": len(source),
            "caption_column": request.caption_column,
        },
        options=asdict(options),
    )
    check_folder(folder, settings)
    distributed.barrier()  # nobody writes before everybody has looked
    on_main(lambda: _begin(folder, settings), f"write to {folder}")

    shards = plan(source, model, options, workers=workers, folder=folder)
    missing = [shard for shard in shards if not is_whole(folder / shard.file)]
    if len(missing) < len(shards):
        say(f"going on: {len(shards) - len(missing)} of {len(shards)} shards are there")
    say(f"the images: {describe_source(source)}")
    distributed.barrier()
    started = time.monotonic()
    loading = CacheImages(
        source, channels, crop=options.sizes != "refuse", broken=options.broken, seed=options.seed
    )
    work = Work(model, loading, annotations, folder, options, say)
    work.do(missing, batch_size=batch_size, workers=workers)
    seconds = time.monotonic() - started
    on_main(lambda: forget_sizes(folder), f"write to {folder}")
    encoded = sum(len(shard.indices) for shard in missing)
    return finish(folder, settings, shards, annotations, encoded=encoded, seconds=seconds)


def _about_scale(options: CacheOptions) -> str:
    """What someone should know before latents of an unknown scale are encoded."""
    size = "" if options.image_size is None else f" --image-size {options.image_size}"
    return (
        "the scale of this model's latents is not known, so LatentDataset will read this cache with "
        "normalised=False only. For a model of a known family, repeat this command with --family "
        f"FAMILY{size}, now or later: it keeps the latents that are there and records the scale. For any "
        "other model, measure the scale first: `latentae stats MODEL --data NAME --out FOLDER`, and encode "
        "with the model in FOLDER"
    )


def _begin(folder: Path, settings: CacheSettings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    if not any(folder.glob(SHARDS)):
        forget_sizes(folder)  # perhaps of other images
    write_settings(folder, settings)


def _open_model(
    model: str | Path | LatentAutoencoder, family: str | None, device: torch.device | None
) -> tuple[LatentAutoencoder, str]:
    """The model in eval mode on the device, and the path it came from."""
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
