"""Writes images of any size beside their reconstructions: what ``latentae reconstruct`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from latentae.console import describe_lack_of_memory, is_out_of_memory
from latentae.data import FolderSource, decode_image
from latentae.data.arrays import ValueRange
from latentae.data.decode import Pixels, check_alpha, stated_size
from latentae.data.transforms import Window, resize_window, to_tensor
from latentae.evaluation.metrics import psnr
from latentae.evaluation.transparency import transparent_psnr
from latentae.models.decoders import downscale, upscale_of
from latentae.report.grids import picture_grid, save_png


@dataclass(frozen=True)
class Job:
    """An image file, its name, and the picture to write of it and its reconstruction."""

    name: str
    image: Path
    picture: Path


@dataclass(frozen=True)
class Comparison:
    """The result of a job: its picture is written, or ``skipped`` has the reason why not.

    Attributes:
        size: (H, W) in pixels.
        psnr: dB, of 8-bit images, over all channels, or with alpha the mean over black and over white; of a
            reconstruction that is larger than the image, once it is downscaled.
        skipped: empty if the picture is written.
        lack_of_memory: the error, without its traceback, if the job was skipped for it.
    """

    job: Job
    size: tuple[int, int] = (0, 0)
    psnr: float = 0.0
    skipped: str = ""
    lack_of_memory: Exception | None = None


def plan_jobs(images: Path, out: Path, overwrite: bool = False) -> list[Job]:
    """Returns a job for each image; reads and writes no image.

    Args:
        images: an image file, or a folder that is searched at any depth.
        out: for one image the PNG file to write, or a folder; for a folder of images a folder, which gets the
            same subfolders. Pictures have their images' names, ending in ``.png``. If two names would be
            equal, ``.png`` is added to the whole name.
        overwrite: whether existing files may be replaced.

    Raises:
        ValueError: there is no image, ``out`` is of the wrong kind, lies among the images, or exists.
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
        raise ValueError(f"{there[0]}{more} there already: choose another OUT, or add --overwrite")
    return jobs


def _check_folder(images: Path, out: Path) -> None:
    if out.is_file() or (out.suffix.lower() == ".png" and not out.is_dir()):
        raise ValueError(f"{images} is a folder of images, so OUT must be a folder too, and {out} is a file")
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"OUT {out} is inside of {images}: choose a folder outside of it")


def _pictures(names: Sequence[str]) -> list[str]:
    """Returns a unique picture name per image name."""
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


def run_jobs(
    model: Any,
    jobs: Sequence[Job],
    max_side: int | None = None,
    *,
    alpha: bool = False,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
) -> Iterator[Comparison]:
    """Reconstructs each image, and writes it beside its reconstruction, the image on the left.

    Args:
        model: of ``load_autoencoder``, in eval mode and float32. Pictures are converted to its channels (one:
            grey); arrays must have that number.
        max_side: larger images are shrunk so that their longer side has this many pixels, bicubic and
            antialiased; None keeps the size.
        alpha: whether the four channels are RGBA; pictures then show images on a checkerboard.
        value_range, max_pixels: as ``decode_image`` takes them.

    Yields:
        a comparison for each job, in order. An image is skipped if it is broken, is smaller than one latent,
        has another number of channels, needs more memory than there is, or becomes NaN.

    Raises:
        ValueError: the model makes other channels than it takes, or with alpha not four; or it takes images
            of one size alone, which none of these has.
        OSError: a picture cannot be written.
    """
    taken, made = model.config.in_channels, model.config.out_channels
    if taken != made:
        raise ValueError(f"the model makes images of {made} channels from {taken}: they cannot be compared")
    if alpha:
        check_alpha(taken)
    _check_fixed_size(model, jobs, max_side)
    for job in jobs:
        yield _compare(model, job, max_side, alpha=alpha, value_range=value_range, max_pixels=max_pixels)


def _check_fixed_size(model: Any, jobs: Sequence[Job], max_side: int | None) -> None:
    """Raises ValueError if the model takes images of one size alone, and no file may have it."""
    side: int | None = getattr(model, "fixed_size", None)
    if side is None:
        return
    for job in jobs:
        size = None
        with suppress(OSError, ValueError):  # a broken file, which is skipped with its reason later
            size = stated_size(job.image)
        if size is None or _shrunk(*size, max_side) == (side, side):  # None: not known before it is decoded
            return
    raise ValueError(
        f"the model takes images of {side}x{side} pixels alone, and none of {len(jobs)} image(s) has this "
        "size: resize or crop them first; --max-side shrinks square ones"
    )


def _compare(model: Any, job: Job, max_side: int | None, *, alpha: bool, **reading: Any) -> Comparison:
    try:
        picture = decode_image(job.image, model.config.in_channels, name=job.name, **reading)
        images = to_tensor(shrink(picture, max_side, alpha=alpha))[None].to(model.device)
        size = images.shape[2], images.shape[3]
        with torch.no_grad():
            reconstruction = model(images).sample
        upscale = upscale_of(model)
        small = downscale(reconstruction, upscale, alpha=alpha)
        ratio = (transparent_psnr(small, images)["psnr"] if alpha else psnr(small, images)).item()
        if upscale > 1:  # beside a larger reconstruction, every pixel of the image is a square
            images = F.interpolate(images, scale_factor=float(upscale), mode="nearest")
    except ValueError as error:
        return Comparison(job, skipped=str(error).removeprefix(f"{job.name}: "))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{describe_lack_of_memory(error)}: try --tile, or --max-side"
        # A traceback would keep the tensors of the failed attempt.
        return Comparison(job, skipped=reason, lack_of_memory=error.with_traceback(None))
    job.picture.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture_grid(torch.stack([images, reconstruction], dim=1), alpha=alpha), job.picture)
    return Comparison(job, size=size, psnr=ratio)


def shrink(picture: Pixels, max_side: int | None, *, alpha: bool = False) -> Pixels:
    """Returns [H, W, C] with at most ``max_side`` pixels along each side; see ``resize_window``."""
    height, width = picture.shape[:2]
    size = _shrunk(height, width, max_side)
    if size == (height, width):
        return picture
    return resize_window(picture, Window(0, 0, height, width), size, alpha=alpha)


def _shrunk(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Returns the size of an image whose longer side is shrunk to ``max_side`` pixels, if it is longer."""
    scale = 1.0 if max_side is None else max_side / max(height, width)
    return (height, width) if scale >= 1 else (max(1, round(height * scale)), max(1, round(width * scale)))
