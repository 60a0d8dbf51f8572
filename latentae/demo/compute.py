"""Computes the demo's pictures: reconstructions, differences, channels, codes, interpolations and samples.

Nothing here knows the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latentae.data import CenterCrop, decode_image, validation_photos
from latentae.data.arrays import ValueRange
from latentae.data.decode import Pixels, check_alpha
from latentae.data.transforms import to_tensor
from latentae.evaluation.metrics import psnr
from latentae.evaluation.models import NamedModel, channels_of, factor_of
from latentae.evaluation.reconstruct import shrink
from latentae.evaluation.transparency import composite_psnr
from latentae.latents.inspection.channels import normal_noise
from latentae.latents.inspection.codes import count_codes
from latentae.latents.statistics import noise_generators
from latentae.models import VQVAE
from latentae.models.interpolation import slerp
from latentae.report.grids import Picture, picture_grid

MOST_CHANNELS = 32
"""The largest number of latent channels that are shown."""
MOST_COUNTED_CODES = 2**24
"""The largest codebook whose codes can be drawn: ``torch.multinomial`` takes no more."""

_GREY = 128  # of a difference of zero
_LEAST_SIDE = 192  # smaller maps grow by whole numbers
_GOLDEN_RATIO, _SQUARE_ROOT_OF_2 = (1 + 5**0.5) / 2, 2**0.5
_COUNTED_AT_ONCE = 4
_DEFAULT_SIDE = 256


@dataclass(frozen=True)
class Reading:
    """Settings for reading image files.

    Attributes:
        alpha: whether images are RGBA, and are shown on a checkerboard.
        max_side: longer images are shrunk to this many pixels, bicubic and antialiased.
        max_pixels: pictures with more pixels are refused before they are decoded.
        value_range: as ``decode_image`` takes it.
    """

    alpha: bool = False
    max_side: int = 1024
    max_pixels: int = 50_000_000
    value_range: ValueRange | None = None


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A decoded image [H, W, C], perhaps shrunk, the size (H, W) of its file, and whether it is RGBA."""

    picture: Pixels
    file_size: tuple[int, int]
    alpha: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) after shrinking."""
        return self.picture.shape[0], self.picture.shape[1]

    def fit(self, size: tuple[int, int]) -> Tensor:
        """Returns the central window, resized to a size (H, W): [1, C, H, W] in [−1, 1]."""
        return CenterCrop(size, alpha=self.alpha)(self.picture)[None]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An image, what a model makes of it, and the latents in between.

    Attributes:
        original, picture: [H, W, 3] as they are shown.
        psnr: dB, of 8-bit images; with alpha the mean over black and over white.
        latents: [c, h, w] float32 on the CPU, unscaled; of VQ models before quantization.
        indices: [h, w], or [depth, h, w] for several tables; None for a model without codes.
    """

    original: Picture
    picture: Picture
    psnr: float
    latents: Tensor
    indices: Tensor | None


def read_image(path: Path, channels: int, reading: Reading) -> LoadedImage:
    """Reads an image file as ``decode_image`` does, and shrinks it to ``reading.max_side``.

    Raises:
        BrokenImageError: the file cannot be decoded, or has more than ``reading.max_pixels``.
    """
    decoded = decode_image(
        path, channels, max_pixels=reading.max_pixels, name=path.name, value_range=reading.value_range
    )
    height, width = decoded.shape[:2]
    picture = shrink(decoded, reading.max_side, alpha=reading.alpha)
    return LoadedImage(picture, (height, width), reading.alpha)


def reconstruct_image(model: NamedModel, images: Tensor, *, alpha: bool = False) -> Reconstruction:
    """Encodes and decodes one image [1, C, H, W] in [−1, 1].

    Raises:
        ValueError: the image is smaller than one latent, or the reconstruction is not finite.
    """
    output = model(images)
    made = output.sample
    ratio = composite_psnr(made, images) if alpha else psnr(made, images)
    return Reconstruction(
        original=show(images, alpha=alpha),
        picture=show(made, alpha=alpha),
        psnr=ratio.item(),
        latents=output.latents[0].float().cpu(),
        indices=None if output.indices is None else output.indices[0].cpu(),
    )


def show(images: Tensor, *, alpha: bool = False) -> Picture:
    """Returns images [B, C, H, W] side by side as one picture, without borders; see ``picture_grid``."""
    return picture_grid(images[None], border=0, alpha=alpha)


def amplified_difference(first: Picture, second: Picture, gain: float) -> Picture:
    """Returns 128 + gain · (second − first), rounded and clipped to [0, 255]: no difference is grey."""
    difference = second.astype(np.float32) - first.astype(np.float32)
    return np.rint(_GREY + gain * difference).clip(0, 255).astype(np.uint8)


def channel_pictures(latents: Tensor) -> list[tuple[Picture, str]]:
    """Returns a grey picture and a caption for each of the first ``MOST_CHANNELS`` channels.

    Each channel has a scale of its own: its smallest value is black and its largest white. A constant channel
    is mid-grey.

    Args:
        latents: [c, h, w].
    """
    pictures = []
    for number, values in enumerate(latents[:MOST_CHANNELS].float()):
        low, high = values.min().item(), values.max().item()
        span = high - low
        shares = (values - low) / span if span > 0 else torch.full_like(values, 0.5)
        picture = show(_enlarged(2 * shares[None, None] - 1))
        pictures.append((picture, f"{number}: {low:.2f} to {high:.2f}"))
    return pictures


def code_maps(indices: Tensor, num_codes: int) -> list[tuple[Picture, str]]:
    """Returns a map and a caption for each table of codes; equal codes have equal colours.

    Args:
        indices: [h, w], or [depth, h, w] for several tables.
        num_codes: of each table.
    """
    tables = indices[None] if indices.ndim == 2 else indices
    pictures = []
    for number, table in enumerate(tables):
        name = f"table {number}: " if len(tables) > 1 else ""
        used = len(table.unique())
        larger = _growth(table.shape)
        colours = code_colours(table.numpy()).repeat(larger, axis=0).repeat(larger, axis=1)
        pictures.append((colours, f"{name}{used} of {num_codes} codes at {table.numel()} positions"))
    return pictures


def code_colours(codes: NDArray[np.int64]) -> Picture:
    """Returns a colour for each code: [h, w, 3] of [h, w].

    Multiples of two irrational numbers spread hue and brightness evenly, whatever the number of codes.
    """
    hue = codes * _GOLDEN_RATIO % 1
    value = 0.45 + 0.55 * (codes * _SQUARE_ROOT_OF_2 % 1)
    parts = np.stack([hue, np.full_like(hue, 0.7), value], axis=-1)
    hsv = Image.fromarray(np.rint(255 * parts).astype(np.uint8), mode="HSV")
    return np.asarray(hsv.convert("RGB"))


def is_scaled(model: NamedModel) -> bool:
    """Whether the model knows the scale in which a denoiser sees its latents."""
    autoencoder: Any = model.autoencoder
    return bool(autoencoder.has_known_scale)


def encode(model: NamedModel, images: Tensor) -> Tensor:
    """Returns the latents [B, c, h, w] of images in a denoiser's scale, or unscaled if that is not known."""
    latents = model.encode(model.seen(images)).float()
    return model.normalise(latents) if is_scaled(model) else latents


def decode(model: NamedModel, latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Decodes what ``encode`` returns to images [B, C, H, W] of a size (H, W)."""
    height, width = size
    if not is_scaled(model):
        return model.decode(latents, size)
    seen = -(-height // model.upscale), -(-width // model.upscale)
    return model.decode_normalised(latents, seen)[..., :height, :width]


def interpolate(first: Tensor, second: Tensor, share: float, *, spherical: bool) -> Tensor:
    """Returns latents between two latents of the same shape: ``first`` at share 0, ``second`` at 1.

    Raises:
        OppositeEndsError: spherical, and the two point in opposite directions.
    """
    if spherical:
        return slerp(first, second, torch.tensor([share]))[0].to(first)
    return torch.lerp(first, second, share)


def sample_size(model: NamedModel, max_side: int) -> int:
    """Returns the side in pixels of the images to sample: the model's own, or 256, and at most ``max_side``.

    It is rounded up to whole latents, as a denoiser sees them.
    """
    autoencoder: Any = model.autoencoder
    recorded = autoencoder.config.get("sample_size")
    side = min(recorded if isinstance(recorded, int) else _DEFAULT_SIDE, max_side)
    multiple = autoencoder.image_multiple * model.upscale
    return int(-(-side // multiple) * multiple)


def sample_prior(model: NamedModel, count: int, side: int, seed: int, device: torch.device) -> Tensor:
    """Decodes independent standard normal latents, in a denoiser's scale.

    Returns:
        [count, C, side, side]; image i depends on (seed, i) alone.

    Raises:
        ValueError: the scale of the latents is not known.
    """
    if not is_scaled(model):
        raise ValueError(
            f"{model.name} does not record the scale of its latents, and noise needs one: name its family, "
            "as in --family sd1"
        )
    autoencoder: Any = model.autoencoder
    positions = side // (factor_of(model) * model.upscale)
    noise = normal_noise(count, (autoencoder.latents_channels, positions, positions), seed)
    return torch.cat([decode(model, one, (side, side)) for one in noise.float().to(device).split(1)])


@torch.no_grad()
def count_photo_codes(model: NamedModel, device: torch.device) -> Tensor:
    """Counts a VQ model's codes on the built-in validation photographs: [K], or [depth, K] of several tables.

    Raises:
        ValueError: a codebook of more than ``MOST_COUNTED_CODES``, or the photographs are not installed.
    """
    vq = _vq(model)
    if vq.num_codes > MOST_COUNTED_CODES:
        raise ValueError(f"{model.name} has {vq.num_codes} codes, which are too many to count and to draw")
    source = validation_photos()
    images = [to_tensor(source.load(index, channels_of(model))) for index in range(len(source))]
    parts = torch.stack(images).to(device).split(_COUNTED_AT_ONCE)
    return count_codes(vq, (model.encode(model.seen(part)) for part in parts))


def draw_codes(counts: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws codes independently, as often as they were counted.

    Args:
        counts: [K], or [depth, K] of several tables.
        shape: of one image's indices: (h, w), or (depth, h, w).
        generator: on the CPU.

    Returns:
        int64 indices of that shape.
    """
    height, width = shape[-2:]
    tables = [
        torch.multinomial(own.double(), height * width, replacement=True, generator=generator)
        for own in counts.reshape(-1, counts.shape[-1])
    ]
    return torch.stack(tables).reshape(tuple(shape))


@torch.no_grad()
def sample_codes(model: NamedModel, counts: Tensor, count: int, side: int, seed: int) -> Tensor:
    """Decodes codes that were drawn by ``draw_codes``.

    Returns:
        [count, C, side, side]; image i depends on (seed, i) alone.
    """
    vq = _vq(model)
    shape = vq.indices_shape(side // model.upscale, side // model.upscale)
    drawn = (draw_codes(counts, shape, each)[None] for each in noise_generators(seed, range(count)))
    return torch.cat([vq.decode_indices(indices.to(vq.device)).float() for indices in drawn])


def has_codes(model: NamedModel) -> bool:
    """Whether the model quantizes its latents."""
    return isinstance(model.autoencoder, VQVAE)


class Demo:
    """The models of a page, and their latest results, so that moving a slider does not run a model again.

    Args:
        models: with the same number of channels.
        reading: how files are read.
        device: of the models.

    Raises:
        ValueError: images are RGBA, and the models take another number of channels.
    """

    def __init__(self, models: Sequence[NamedModel], reading: Reading, device: torch.device) -> None:
        self.models = {model.name: model for model in models}
        self.channels = channels_of(models[0])
        if reading.alpha:
            check_alpha(self.channels, several=True)
        self.reading = reading
        self.device = device
        # Paths of uploads contain a hash of the content, so equal paths mean equal images.
        self.load = lru_cache(4)(self._load)
        self.reconstruct = lru_cache(2 * len(models))(self._reconstruct)
        self._latents = lru_cache(4)(self._encode)
        self._counts = lru_cache(len(models))(self._count)

    def interpolate(self, name: str, first: str, second: str, share: float, *, spherical: bool) -> Picture:
        """Returns the decoded point between two images; the second is cropped to the size of the first."""
        model, size = self.models[name], self.load(first).size
        start, end = (self._latents(name, path, size) for path in (first, second))
        latents = interpolate(start, end, share, spherical=spherical)
        return show(decode(model, latents, size), alpha=self.reading.alpha)

    def sample(self, name: str, count: int, seed: int) -> list[Picture]:
        """Returns decoded noise, or for a VQ model decoded codes, which were counted on photographs."""
        model = self.models[name]
        side = sample_size(model, self.reading.max_side)
        if has_codes(model):
            images = sample_codes(model, self._counts(name), count, side, seed)
        else:
            images = sample_prior(model, count, side, seed, self.device)
        return [show(one, alpha=self.reading.alpha) for one in images.split(1)]

    def _load(self, path: str) -> LoadedImage:
        return read_image(Path(path), self.channels, self.reading)

    def _reconstruct(self, name: str, path: str) -> Reconstruction:
        image = self.load(path)
        return reconstruct_image(
            self.models[name], image.fit(image.size).to(self.device), alpha=self.reading.alpha
        )

    def _encode(self, name: str, path: str, size: tuple[int, int]) -> Tensor:
        return encode(self.models[name], self.load(path).fit(size).to(self.device))

    def _count(self, name: str) -> Tensor:
        return count_photo_codes(self.models[name], self.device)


def _vq(model: NamedModel) -> VQVAE:
    assert isinstance(model.autoencoder, VQVAE)
    return model.autoencoder


def _growth(size: Sequence[int]) -> int:
    """Returns the whole number by which a map (h, w) has to grow to be seen."""
    return max(1, -(-_LEAST_SIDE // max(size[-2:])))


def _enlarged(maps: Tensor) -> Tensor:
    larger = _growth(maps.shape)
    return maps.repeat_interleave(larger, dim=-2).repeat_interleave(larger, dim=-1)
