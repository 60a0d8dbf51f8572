"""PSNR, L1, SSIM, MS-SSIM, SNR by spatial frequency and drift of 8-bit images, one value per image.

Reconstructions are judged as the images they would be saved as: clamped to [-1, 1] and rounded to 8 bits,
with a data range of 255. Everything after that is computed in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.devices import to_float64
from latentae.models.decoders import downscale

_DATA_RANGE = 255
_WINDOW_SIZE = 11
_WINDOW_SIGMA = 1.5
_K1 = 0.01
_K2 = 0.03
# Exponents of the five scales, finest first (Wang et al. 2003, section 3.2).
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MS_SSIM_SIZE = _WINDOW_SIZE * 2 ** (len(_SCALE_WEIGHTS) - 1)
BAND_PERIODS = (2, 4, 8, 16, 32)
"""The shortest wavelength, in pixels, of each octave band of ``band_snr``."""
_ROUNDING_POWER = 1 / 12  # the variance of what rounding to whole levels changes


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images to 8 bits: -1 becomes 0 and 1 becomes 255, values outside are clamped.

    Args:
        images: floating point, any shape, in [-1, 1].

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: the images are not of floating-point type, or hold NaN.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are of type {images.dtype}: convert them to floats in [-1, 1]")
    if images.isnan().any():
        raise ValueError("images hold NaN, which 8 bits cannot: look for where the model diverged")
    # Half precision cannot hold all 256 levels with their halves.
    exact = images if images.dtype == torch.float64 else images.float()
    return ((exact.clamp(-1, 1) + 1) * (_DATA_RANGE / 2)).round().to(torch.uint8)


def to_images(pixels: Tensor) -> Tensor:
    """Returns 8-bit images as float32 in [-1, 1]; `to_uint8` is the inverse."""
    return pixels.float() / 127.5 - 1


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10 log10(255² / MSE), the MSE over channels and pixels.

    An image equal to its target has an infinite ratio, and so has any mean over it.

    Args:
        reconstruction, target: [B, C, H, W] in [-1, 1], of the same shape.

    Returns:
        [B], float64.

    Raises:
        ValueError: the shapes differ or are not [B, C, H, W], or `to_uint8` refuses the images.
    """
    return 10 * torch.log10(_DATA_RANGE**2 / _difference(reconstruction, target).square().mean(dim=(1, 2, 3)))


def downscaled_psnr(reconstruction: Tensor, images: Tensor, upscale: int) -> Tensor:
    """PSNR in dB, [B], of a model that upscales, at the size of the images that its encoder saw."""
    return psnr(*(to_images(to_uint8(downscale(x, upscale))) for x in (reconstruction, images)))


def l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference [B] in the units of images in [-1, 1]; arguments and errors as in `psnr`."""
    return _difference(reconstruction, target).abs().mean(dim=(1, 2, 3)) / (_DATA_RANGE / 2)


def _difference(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Returns the difference of the 8-bit images in float64, in steps of 1/255."""
    _validate(reconstruction, target)
    return to_float64(to_uint8(reconstruction)) - to_float64(to_uint8(target))


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of Wang et al. 2004 (doi:10.1109/TIP.2003.819861), equations 13 and 17.

    With a Gaussian window of 11 pixels and σ = 1.5, K1 = 0.01, K2 = 0.03 and population covariances, each
    channel by itself. The mean runs over the channels and over the positions at which the window lies inside
    the image. Equal to scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255)`.

    Args:
        reconstruction, target: [B, C, H, W] in [-1, 1], at least 11×11 pixels.

    Returns:
        [B], float64, in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: the shapes differ or are not [B, C, H, W], the images are smaller than the window, or
            `to_uint8` refuses them.
    """
    _validate(reconstruction, target)
    height, width = reconstruction.shape[2:]
    if min(height, width) < _WINDOW_SIZE:
        raise ValueError(
            f"images are {height} x {width}: SSIM needs at least {_WINDOW_SIZE} pixels a side, its window"
        )
    # One image at a time stays in the processor's cache: twice as fast as a whole batch.
    pairs = zip(to_uint8(reconstruction), to_uint8(target), strict=True)
    return torch.stack([_similarity(to_float64(x), to_float64(y))[0] for x, y in pairs])


def ms_ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """SSIM over five scales (Wang, Simoncelli & Bovik 2003, doi:10.1109/ACSSC.2003.1292216), equation 7.

    Contrast and structure at each scale, luminance at the coarsest, each a mean over channels and over the
    positions at which the window lies inside the image; a scale is the one before averaged over 2×2 pixels.
    Negative means count as 0. (torchmetrics has the luminance's mean run over mirrored borders too, which
    makes a difference of about 1e-4.)

    Images need at least 176×176 pixels. Arguments and errors are those of `ssim`; values lie in [0, 1].
    """
    return ssim_and_ms_ssim(reconstruction, target)[1]


def ssim_and_ms_ssim(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Computes both, two [B], at the cost of `ms_ssim`, whose finest scale is `ssim`."""
    _validate(reconstruction, target)
    if min(reconstruction.shape[2:]) < _MS_SSIM_SIZE:
        height, width = reconstruction.shape[2:]
        raise ValueError(
            f"images are {height} x {width}: MS-SSIM needs at least {_MS_SSIM_SIZE} pixels a side, five "
            "scales of its window"
        )
    pairs = zip(to_uint8(reconstruction), to_uint8(target), strict=True)
    rows = torch.stack([_multiscale_similarity(to_float64(x), to_float64(y)) for x, y in pairs])
    return rows[:, 0], rows[:, 1]


def _multiscale_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Returns [2]: the similarity at the finest scale, and that over all scales."""
    finest, contrast = _similarity(x, y)
    result = contrast.clamp(min=0) ** _SCALE_WEIGHTS[0]
    for scale, weight in enumerate(_SCALE_WEIGHTS[1:], start=2):
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        similarity, contrast = _similarity(x, y)
        part = similarity if scale == len(_SCALE_WEIGHTS) else contrast
        result = result * part.clamp(min=0) ** weight
    return torch.stack([finest, result])


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the similarity and of its contrast-and-structure factor, over channels and positions."""
    # A channel at a time stays in the processor's cache: a third faster than all of an image's.
    rows = torch.stack([_plane_similarity(*planes) for planes in zip(x, y, strict=True)])
    return rows[:, 0].mean(), rows[:, 1].mean()


def _plane_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Returns [2]: the same of one channel [H, W]."""
    c1, c2 = (_K1 * _DATA_RANGE) ** 2, (_K2 * _DATA_RANGE) ** 2
    # σx² and σy² enter by their sum only, so four moments do.
    moments = _window_mean(_window_mean(torch.stack([x, y, x * x + y * y, x * y]), dim=-1), dim=-2)
    mean_x, mean_y, mean_squares, mean_product = moments
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    covariance, variances = mean_product - product, mean_squares - squares
    contrast = (2 * covariance + c2).div_(variances + c2)
    luminance = (2 * product + c1).div_(squares + c1)
    return torch.stack([luminance.mul_(contrast).mean(), contrast.mean()])


def _window_mean(planes: Tensor, dim: int) -> Tensor:
    """The Gaussian-weighted mean along `dim` at each position where the window fits."""
    offsets = torch.arange(_WINDOW_SIZE, dtype=torch.float64) - _WINDOW_SIZE // 2
    window = torch.exp(-offsets.square() / (2 * _WINDOW_SIGMA**2))
    positions = planes.shape[dim] - _WINDOW_SIZE + 1
    mean = torch.zeros_like(planes.narrow(dim, 0, positions))
    for start, weight in enumerate((window / window.sum()).tolist()):
        mean.add_(planes.narrow(dim, start, positions), alpha=weight)
    return mean


def _validate(reconstruction: Tensor, target: Tensor) -> None:
    shape = tuple(reconstruction.shape)
    if len(shape) != 4 or 0 in shape or shape != tuple(target.shape):
        raise ValueError(
            f"reconstruction and target have shapes {shape} and {tuple(target.shape)}: "
            "give two non-empty batches of the same shape [B, C, H, W]"
        )


@torch.no_grad()
def band_snr(reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Signal-to-noise ratio in octave bands of spatial frequency, in dB: how much of which detail is kept.

    10 log10(P / N), with P the power of the image in the band and N that of the residual, summed over the
    channels. 0 dB means that the error is as large as the detail: a blur that removes a band has 0 dB there.
    The mean of each channel of the image and of the residual is removed, and a Hann window keeps the borders
    from appearing as detail. ``snr_4px`` is of wavelengths from 4 to 8 pixels (frequencies above 1/8 and up
    to 1/4 cycles per pixel), ``snr_2px`` reaches into the corners of the spectrum (1.4 pixels), and
    ``snr_32px`` has all that is coarser. N counts as what rounding to 8 bits makes, 1/12 per pixel, if it is
    less, so that the ratio stays finite.

    Arguments and errors are those of `psnr`.

    Returns:
        metric → [B] float64; NaN for an image that has less than rounding makes in the band, or is too small
        to have such wavelengths.
    """
    _validate(reconstruction, target)
    images = to_float64(to_uint8(target))
    bands = _bands(*images.shape[2:]).to(images.device)
    sizes = bands.sum(dim=(0, 1))
    signal, noise = (_band_power(each, bands) for each in (images, _difference(reconstruction, target)))
    floor = _ROUNDING_POWER * images.shape[1] * sizes
    ratio = 10 * torch.log10(signal / torch.maximum(noise, floor))
    ratio = torch.where((signal >= floor) & (sizes > 0), ratio, float("nan"))
    return {f"snr_{period}px": ratio[:, band] for band, period in enumerate(BAND_PERIODS)}


def _bands(height: int, width: int) -> Tensor:
    """Returns how often each frequency of a real transform [H, W // 2 + 1] counts in each of the 5 bands.

    Frequencies that the real transform leaves out equal others, which count twice. The mean does not count.
    """
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    frequency = torch.hypot(rows[:, None], columns[: width // 2 + 1])
    bounds = torch.tensor([1 / (2 * period) for period in BAND_PERIODS[:-1]], dtype=torch.float64)
    bands = F.one_hot((frequency[..., None] <= bounds).sum(dim=-1), len(BAND_PERIODS)).double()
    bands[:, 1 : (width + 1) // 2] *= 2
    bands[0, 0] = 0
    return bands


def _band_power(images: Tensor, bands: Tensor) -> Tensor:
    """Returns the power of images [B, C, H, W] in each band, [B, 5], summed over frequencies and channels.

    White noise of variance 1 has the number of frequencies in the band, for each channel.
    """
    sides = [torch.hann_window(side, dtype=images.dtype, device=images.device) for side in images.shape[2:]]
    window = torch.outer(*sides)
    mean = (images * window).sum(dim=(2, 3), keepdim=True) / window.sum()
    spectrum = torch.fft.rfft2((images - mean) * window)
    power = (spectrum.real.square() + spectrum.imag.square()).sum(dim=1) / window.square().sum()
    return power.flatten(1) @ bands.flatten(0, 1)


@torch.no_grad()
def cycle_drift(
    reconstruct: Callable[[Tensor], Tensor],
    images: Tensor,
    rounds: Sequence[int] = (1, 2, 5, 10),
    first: Tensor | None = None,
    measure: Callable[[Tensor, Tensor], Tensor] = psnr,
) -> dict[int, Tensor]:
    """PSNR against the original after several rounds of encoding and decoding, as in repeated editing.

    Between rounds images are rounded to 8 bits, as by pipelines that pass on pictures.

    Args:
        reconstruct: maps images [B, C, H, W] in [-1, 1] to reconstructions.
        images: the originals.
        rounds: the rounds after which to measure, rising, 1 or more.
        first: the reconstruction of the first round, if it is known.
        measure: compares images with the originals: two [B, C, H, W] to [B].

    Returns:
        round → [B] float64 in dB.

    Raises:
        ValueError: the rounds do not rise, or begin below 1.
    """
    if not rounds or rounds[0] < 1 or any(a >= b for a, b in itertools.pairwise(rounds)):
        raise ValueError(f"rounds are {list(rounds)}, but must be 1 or more and rise")
    current = images
    drift = {}
    for done in range(1, rounds[-1] + 1):
        output = first if done == 1 and first is not None else reconstruct(current)
        current = to_images(to_uint8(output)).to(images.dtype)
        if done in rounds:
            drift[done] = measure(current, images)
    return drift
