"""From the name of a model and of data to a calibrated model on disk: what `latentae stats` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latentae import distributed
from latentae.data import CenterCrop, ImageDataset, RandomCrop, open_sources
from latentae.data.decode import check_channels
from latentae.latents.calibration import calibrate, check_per_channel
from latentae.latents.measurement import measure_latents
from latentae.latents.saving import check_writable, choose_place, write_model
from latentae.latents.statistics import LatentStatistics
from latentae.latents.views import FEWEST_VIEWS, view_loader
from latentae.models import KLVAE, VQVAE, load_autoencoder


def recalibrate(
    model: str,
    *,
    data: str,
    split: str = "train",
    image_size: int | None = None,
    per_channel: bool = False,
    max_images: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
    out: Path | None = None,
    in_place: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None],
) -> None:
    """Opens a model, measures its latents, calibrates it, checks it on held-out images, writes it.

    Measured are random crops of the training images, checked are centre crops of the validation images; see
    ``open_sources`` for which these are. The other arguments are those of the command. Every rank calls it.

    Raises:
        ValueError: a model, data or folder that cannot be used.
        BrokenImageError: none of the images can be decoded.
    """
    place = choose_place(model, out, in_place)
    with distributed.main_first():  # the first rank fetches the model, the others find it
        autoencoder = load_autoencoder(model)
    if not isinstance(autoencoder, KLVAE | VQVAE):
        raise ValueError(f"{model} is a {type(autoencoder).__name__}, which cannot be calibrated")
    if per_channel:
        check_per_channel(autoencoder)
    if place is not None:
        check_writable(autoencoder)
    autoencoder.to(device or torch.device("cpu"))
    check_channels(autoencoder.config.in_channels)
    size = autoencoder.config.sample_size if image_size is None else image_size
    sources = open_sources(data, split=split)
    say(sources.description)
    settings: Any = {"channels": autoencoder.config.in_channels, "seed": seed}
    training = ImageDataset(sources.train, RandomCrop(size), **settings)
    held_out = ImageDataset(sources.validation, CenterCrop(size), **settings)
    measuring: Any = {
        "batch_size": batch_size,
        "max_views": max_images,
        "num_workers": num_workers,
        "seed": seed,
        "say": say,
    }

    probe = held_out[0, 0]["images"][None].to(autoencoder.device)
    before = _reconstruct(autoencoder, probe)
    if not bool(before.isfinite().all()):
        raise ValueError(
            f"{model} makes images that are not finite: its weights are damaged, or its training diverged"
        )
    statistics = _measure(autoencoder, training, fewest_views=FEWEST_VIEWS, **measuring)
    what = "posterior samples" if isinstance(autoencoder, KLVAE) else "latents before quantization"
    say(
        f"{what} of {statistics.images} crops of {len(training)} image(s), {size} pixels; standard error of "
        f"the std {100 * statistics.global_std_error:.2g} %\n{_table(statistics)}"
    )
    calibration = calibrate(autoencoder, statistics, per_channel=per_channel)
    change = (_reconstruct(autoencoder, probe) - before).abs().max().item()
    say(f"set: {calibration}\npixels of a reconstruction changed by {change:.1e} at most")
    for remark in calibration.remarks:
        say(f"note: {remark}")
    checked = _measure(autoencoder, held_out, scaled=True, **measuring)
    say(
        f"to_latents on {checked.images} held-out image(s), where mean 0 and std 1 are right:\n"
        f"{_table(checked)}"
    )
    if place is None:
        say("nothing is written: --out FOLDER or --in-place takes the calibrated model")
    else:
        _write(autoencoder, place, say)


def _measure(
    model: KLVAE | VQVAE,
    dataset: ImageDataset,
    *,
    seed: int,
    say: Callable[[str], None],
    scaled: bool = False,
    **loading: Any,
) -> LatentStatistics:
    """``measure_latents`` with a progress bar, and a warning about images that had to be replaced."""
    loader = view_loader(
        dataset, seed=seed, rank=distributed.rank(), world_size=distributed.world_size(), **loading
    )
    broken = 0

    def batches() -> Any:
        nonlocal broken
        # None: only on a terminal
        for batch in tqdm(loader, unit="batch", leave=False, disable=None if distributed.is_main() else True):
            broken += len(batch["broken"])
            yield batch

    statistics = measure_latents(model, batches(), seed=seed, scaled=scaled)
    total = int(distributed.all_reduce_sum(torch.tensor(broken)).item())
    if total:
        say(f"note: {total} image(s) could not be decoded, and others were measured in their place")
    return statistics


def _write(model: KLVAE | VQVAE, place: Path, say: Callable[[str], None]) -> None:
    """Writes the model from the main rank."""
    difference, failure = 0.0, None
    if distributed.is_main():
        try:
            difference = write_model(model, place)
        except (ValueError, OSError) as error:
            failure = error  # raised only after the other ranks know of it, or they would wait
    failures = int(distributed.all_reduce_sum(torch.tensor(int(failure is not None))).item())
    if failures:
        raise failure or ValueError(f"nothing could be written to {place}")
    say(f"written to {place}; reopened, it differs by {difference:.1e} of the largest value at most")


@torch.no_grad()
def _reconstruct(model: KLVAE | VQVAE, images: torch.Tensor) -> torch.Tensor:
    return model(images).sample


def _table(statistics: LatentStatistics) -> str:
    """Mean and standard deviation of each channel and of all."""
    rows = [
        (str(channel), mean, std)
        for channel, (mean, std) in enumerate(
            zip(statistics.mean.tolist(), statistics.std.tolist(), strict=True)
        )
    ]
    rows.append(("all", statistics.global_mean, statistics.global_std))
    lines = [f"  {name:>7}  {mean:+9.4f}  {std:9.4f}" for name, mean, std in rows]
    return "\n".join([f"  {'channel':>7}  {'mean':>9}  {'std':>9}", *lines])
