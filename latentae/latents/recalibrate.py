"""Measures, calibrates, checks and writes a model: the work of `latentae stats`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latentae import distributed
from latentae.data import CenterCrop, DataSelection, ImageDataset, RandomCrop, open_sources
from latentae.data.decode import check_alpha, check_channels
from latentae.distributed import on_main
from latentae.export import export_autoencoder
from latentae.latents.calibration import calibrate, check_per_channel
from latentae.latents.statistics import (
    FEWEST_VIEWS,
    MOST_VIEWS,
    LatentStatistics,
    measure_latents,
    view_loader,
)
from latentae.models import KLVAE, VQVAE, Autoencoder, Flux2VAE, load_autoencoder


def recalibrate(
    model: str,
    *,
    data: str,
    split: str = "train",
    image_column: str | None = None,
    dataset_config: str | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    image_size: int | None = None,
    per_channel: bool = False,
    max_images: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
    out: Path | None = None,
    alpha: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], None],
) -> None:
    """Opens a model, measures its latents, calibrates it, checks it on held-out images, and writes it.

    Random crops of the training images are measured, and centre crops of the validation images are checked;
    see ``open_sources`` for which images these are. Every rank must call it.

    Args:
        model: a path, or another name that ``load_autoencoder`` opens.
        data, split, image_column, dataset_config, value_range, max_pixels: see ``open_sources``.
        image_size: pixels of the crops; None: the model's ``sample_size``.
        per_channel: see ``calibrate``.
        max_images: crops to measure at most, over all ranks; None: 16,384.
        batch_size: images per batch, on each rank.
        num_workers: processes that decode images.
        seed: of crops, order and posterior samples.
        out: a new or empty folder for the calibrated model; None: nothing is written.
        alpha: whether images are RGBA, whose colours are resized by their alpha: see ``resize_window``.
        device: to measure on; None: the CPU.
        say: receives the report, part by part.

    Raises:
        ValueError: a model, data or folder that cannot be used.
        BrokenImageError: none of the images can be decoded.
    """
    autoencoder = _open_model(model, out, per_channel)
    if alpha:
        check_alpha(autoencoder.config.in_channels)
    autoencoder.to(device or torch.device("cpu"))

    # Open the images.
    size = autoencoder.config.sample_size if image_size is None else image_size
    selection = DataSelection(data, split, image_column, dataset_config, value_range, max_pixels)
    sources = open_sources(**vars(selection))
    say(sources.description)
    settings: Any = {"channels": autoencoder.config.in_channels, "seed": seed}
    training = ImageDataset(sources.train, RandomCrop(size, alpha=alpha), **settings)
    held_out = ImageDataset(sources.validation, CenterCrop(size, alpha=alpha), **settings)
    measuring: Any = {
        "batch_size": batch_size,
        "max_views": MOST_VIEWS if max_images is None else max_images,
        "num_workers": num_workers,
        "seed": seed,
        "say": say,
    }

    # Reconstruct one image before and after: its pixels must stay.
    probe = held_out[0, 0]["images"][None].to(autoencoder.device)
    before = _reconstruct(autoencoder, probe)
    if not bool(before.isfinite().all()):
        raise ValueError(
            f"{model} makes images that are not finite: its weights are damaged, or its training diverged"
        )
    _calibrate(autoencoder, training, size, per_channel, measuring)
    change = (_reconstruct(autoencoder, probe) - before).abs().max().item()
    say(f"pixels of a reconstruction changed by {change:.1e} at most")

    # Check the result on held-out images, and write the model.
    checked = _measure(autoencoder, held_out, scaled=True, **measuring)
    say(
        f"to_latents on {checked.images} held-out image(s), where mean 0 and std 1 are right:\n"
        f"{_table(checked)}"
    )
    if out is None:
        say("nothing is written: --out FOLDER takes the calibrated model")
        return

    def write() -> None:
        report = export_autoencoder(autoencoder, out, format="diffusers")
        say(f"written to {out}; reopened, it differs by {report.max_error:.1e} of the largest value at most")

    on_main(write, f"write to {out}")


def _open_model(model: str, out: Path | None, per_channel: bool) -> Autoencoder:
    """Opens the model; raises ValueError where it cannot be calibrated, or not be written to ``out``."""
    if out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise ValueError(f"--out is {out}, which is there already; choose a new folder")
    with distributed.main_first():  # the first rank fetches the model, the others find it
        autoencoder = load_autoencoder(model)
    if not isinstance(autoencoder, Autoencoder):
        raise ValueError(f"{model} is a {type(autoencoder).__name__}, which cannot be calibrated")
    if per_channel:
        check_per_channel(autoencoder)
    if out is not None and autoencoder.stock_objection is not None:
        raise ValueError(
            f"{autoencoder.stock_objection}, so the calibrated model cannot be written as one. Leave out "
            "--out to measure it only; latentae.latents.calibration.calibrate changes a model in memory, and "
            "save_pretrained keeps it"
        )
    check_channels(autoencoder.config.in_channels)
    return autoencoder


def _calibrate(
    model: Autoencoder, training: ImageDataset, size: int, per_channel: bool, measuring: dict[str, Any]
) -> None:
    """Measures the training images, calibrates the model by them, and reports both."""
    say = measuring["say"]
    statistics = _measure(model, training, fewest_views=FEWEST_VIEWS, **measuring)
    what = "posterior samples" if isinstance(model, KLVAE) else "latents"
    if isinstance(model, VQVAE):
        what += " before quantization"
    if isinstance(model, Flux2VAE):
        what += ", in 2x2 patches,"
    say(
        f"{what} of {statistics.images} crops of {len(training)} image(s), {size} pixels\n"
        f"{_table(statistics)}"
    )
    calibration = calibrate(model, statistics, per_channel=per_channel)
    say(f"set: {calibration}")
    for remark in calibration.remarks:
        say(f"note: {remark}")


def _measure(
    model: Autoencoder,
    dataset: ImageDataset,
    *,
    seed: int,
    say: Callable[[str], None],
    scaled: bool = False,
    **loading: Any,
) -> LatentStatistics:
    """Measures latents with a progress bar, and reports images that had to be replaced."""
    loader = view_loader(
        dataset, seed=seed, rank=distributed.rank(), world_size=distributed.world_size(), **loading
    )
    broken = 0

    def batches() -> Any:
        nonlocal broken
        # disable=None: a bar on a terminal only
        for batch in tqdm(loader, unit="batch", leave=False, disable=None if distributed.is_main() else True):
            broken += len(batch["broken"])
            yield batch

    statistics = measure_latents(model, batches(), seed=seed, scaled=scaled)
    total = int(distributed.all_reduce_sum(torch.tensor(broken)).item())
    if total:
        say(f"note: {total} image(s) could not be decoded, and others were measured in their place")
    return statistics


@torch.no_grad()
def _reconstruct(model: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    return model(images).sample


def _table(statistics: LatentStatistics) -> str:
    """Returns a table of mean and standard deviation, of each channel and of all values."""
    pairs = zip(statistics.mean.tolist(), statistics.std.tolist(), strict=True)
    rows = [*enumerate(pairs), ("all", (statistics.global_mean, statistics.global_std))]
    lines = [f"  {name:>7}  {mean:+9.4f}  {std:9.4f}" for name, (mean, std) in rows]
    return "\n".join([f"  {'channel':>7}  {'mean':>9}  {'std':>9}", *lines])
