"""Pictures of any size beside what an autoencoder makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latentae.data import FolderSource, decode_image
from latentae.data.image_source import Pixels
from latentae.data.transforms import Window, resize_window, to_tensor
from latentae.evaluation.metrics import psnr
from latentae.report.grids import picture_grid, save_png


class Autoencoder(Protocol):
    """What is needed of a model: every one that ``load_autoencoder`` returns has it."""

    config: Any
    device: Any

    def __call__(self, images: Tensor, /) -> Any:
        """An output whose ``sample`` is the reconstruction of images [B, C, H, W] in [−1, 1], as large."""


@dataclass(frozen=True)
class Job:
    """An image, what to call it, and where the picture of it and its reconstruction goes."""

    name: str
    image: Path
    picture: Path


@dataclass(frozen=True)
class Comparison:
    """What became of a job: its picture is written, or ``skipped`` says why not.

    Attributes:
        size: (H, W) in pixels. psnr: dB, of 8-bit images, over all channels.
        skipped: empty where all went well.
    """

    job: Job
    size: tuple[int, int] = (0, 0)
    psnr: float = 0.0
    skipped: str = ""


def plan_jobs(images: Path, out: Path, overwrite: bool = False) -> list[Job]:
    """A job for each image; nothing is read or written yet.

    Args:
        images: an image file, or a folder that is searched at any depth.
        out: for one image the PNG file to write, or a folder; for a folder of images a folder, which gets the
            same subfolders. Pictures are called like their images, ending in ``.png``; where that would be
            the same for two, ``.png`` is put after the whole name.
        overwrite: whether files that are there already may be replaced.

    Raises:
        ValueError: there is no image; ``out`` is of the wrong kind, or would change the images or be taken
            for images the next time; or a file is there already.
    """
    if images.is_dir():
        source = FolderSource(images)
        names = [source.name(index) for index in range(len(source))]
        _check_folder(images, out)
        places = zip(names, _pictures(names), strict=True)
        jobs = [Job(name, images / name, out / picture) for name, picture in places]
    elif images.is_file():
        jobs = [Job(images.name, images, _one_picture(images, out))]
    else:
        raise ValueError(f"there is no image or folder {images}")
    there = [job.picture for job in jobs if job.picture.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more are" if len(there) > 1 else " is"
        raise ValueError(f"{there[0]}{more} there already: choose another OUT, or allow it by --overwrite")
    return jobs


def _check_folder(images: Path, out: Path) -> None:
    if out.is_file() or (out.suffix.lower() == ".png" and not out.is_dir()):
        raise ValueError(f"{images} is a folder of images, so OUT must be a folder too, and {out} is a file")
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"OUT {out} is inside of {images}, whose images it would join: choose one outside")


def _pictures(names: Sequence[str]) -> list[str]:
    """What the pictures are called, each name once."""
    plain = [Path(name).with_suffix(".png").as_posix() for name in names]
    shared = {picture for picture, count in Counter(plain).items() if count > 1}
    origins: dict[str, str] = {}
    for name, picture in zip(names, plain, strict=True):
        chosen = f"{name}.png" if picture in shared else picture
        if chosen in origins:
            raise ValueError(f"{origins[chosen]} and {name} would both become {chosen}: rename one of them")
        origins[chosen] = name
    return list(origins)


def _one_picture(image: Path, out: Path) -> Path:
    if out.is_dir() or not out.suffix:
        out = out / f"{image.stem}.png"
    elif out.suffix.lower() != ".png":
        raise ValueError(f"OUT {out} must end in .png, or be a folder")
    if out.resolve() == image.resolve():
        raise ValueError(f"OUT {out} is the image itself: choose another place")
    return out


def run_jobs(model: Autoencoder, jobs: Sequence[Job], max_side: int | None = None) -> Iterator[Comparison]:
    """Reconstructs each image, and writes it beside its reconstruction, the image on the left.

    Args:
        model: in eval mode and float32. Pictures are converted to its channels (one: grey); arrays must have
            them. ``plan_jobs`` says what is written where, ``picture_grid`` how it is shown.
        max_side: images whose longer side has more pixels are shrunk to it, bicubic and antialiased; None:
            every image is taken as large as it is.

    Yields:
        a comparison for each job, in order. An image is skipped that is broken, is smaller than one latent,
        has another number of channels, takes more memory than there is, or becomes NaN.

    Raises:
        ValueError: the model makes other channels than it takes.
        OSError: a picture cannot be written.
    """
    taken, made = model.config.in_channels, model.config.out_channels
    if taken != made:
        raise ValueError(f"the model makes images of {made} channels from {taken}: they cannot be compared")
    for job in jobs:
        yield _compare(model, job, max_side)


def _compare(model: Autoencoder, job: Job, max_side: int | None) -> Comparison:
    try:
        images = _read(job, model.config.in_channels, max_side).to(model.device)
        with torch.no_grad():
            reconstruction = model(images).sample
        ratio = psnr(reconstruction, images).item()
    except ValueError as error:
        return Comparison(job, skipped=str(error).removeprefix(f"{job.name}: "))
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return Comparison(job, skipped="it takes more memory than there is: try --tile, or --max-side")
    job.picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture_grid(torch.stack([images, reconstruction], dim=1)), job.picture)
    return Comparison(job, size=(images.shape[2], images.shape[3]), psnr=ratio)


def _read(job: Job, channels: int, max_side: int | None) -> Tensor:
    """[1, C, H, W] in [−1, 1]."""
    picture = decode_image(job.image, channels, name=job.name)
    return to_tensor(picture if max_side is None else _shrink(picture, max_side))[None]


def _shrink(picture: Pixels, max_side: int) -> Pixels:
    height, width = picture.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resize_window(picture, Window(0, 0, height, width), size)
