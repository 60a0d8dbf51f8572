"""The sections of an inspection: each has a figure, its numbers, an explanation and remarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.latents.inspection.channels import (
    ABOUT_CORRELATIONS,
    ABOUT_HISTOGRAMS,
    ChannelCorrelations,
    ChannelHistograms,
    LatentGaussian,
    gather_channels,
)
from latentae.latents.inspection.codes import codebook_pictures, count_codes
from latentae.latents.inspection.decoding import (
    ABOUT_FITTED,
    ABOUT_INTERPOLATION,
    ABOUT_PRIOR,
    ABOUT_TRAVERSAL,
    Autoencoder,
    Interpolation,
    interpolate,
    sample_gaussian,
    sample_prior,
    traverse,
)
from latentae.latents.inspection.spectrum import ABOUT as ABOUT_SPECTRUM
from latentae.latents.inspection.spectrum import (
    SMALLEST_SIDE,
    MapPower,
    RadialSpectrum,
    average_power,
    compare_spectra,
    map_power,
)
from latentae.latents.statistics import noise_generators
from latentae.models import KLVAE, VQVAE
from latentae.models.decoders import average_by_alpha
from latentae.models.interpolation import OppositeEndsError
from latentae.report.grids import Figure

NAMES = ("histograms", "spectrum", "correlations", "interpolation", "samples", "traversal", "codebook")
"""The names of all sections that can occur."""

_MOST_CHANNELS = 16
_SAMPLES = 7
# Codes that are shown, over all tables of a composition.
_MOST_CODES = 1024


@dataclass(frozen=True, eq=False)
class Section:
    """One section of the page.

    Attributes:
        name: of its files and its key in the numbers.
        figure: None where it could not be made; the remarks say why.
        about: an explanation of the figure, in sentences.
        remarks: particular to this model or these images.
    """

    name: str
    title: str
    figure: Figure | None
    numbers: dict[str, Any]
    about: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Inspected:
    """A model, the measurements of its latents, how to decode, and whether images are RGBA (``alpha``)."""

    model: Autoencoder
    measured: Measured
    seed: int
    batch_size: int
    alpha: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        height, width = self.measured.kept.shape[-2:]
        return height, width

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        return self.model.latents_shape(self.measured.kept)

    @property
    def decoding(self) -> dict[str, Any]:
        """Keyword arguments of all functions that decode."""
        return {"size": self.size, "batch_size": self.batch_size}


def all_sections(inspected: Inspected) -> list[Section]:
    """Makes every section of this kind of model, in the order of the page."""
    makers = (_histograms, _spectra, _correlations, _interpolation, _samples, _traversal)
    sections = [make(inspected) for make in makers]
    return [*sections, _codes(inspected)] if isinstance(inspected.model, VQVAE) else sections


def _histograms(inspected: Inspected) -> Section:
    found = inspected.measured.histograms
    constant = [number for number, channel in enumerate(found.channels) if channel.constant]
    title, remarks = "Values of the channels", _constant_remarks(constant)
    figure = found.figure(_MOST_CHANNELS)
    return Section("histograms", title, figure, found.numbers(), ABOUT_HISTOGRAMS, remarks)


def _spectra(inspected: Inspected) -> Section:
    found = inspected.measured.spectra
    remarks = [
        f"{name}: constant in channel(s) {_join(one.constant)}, which have no spectrum"
        for name, one in found.items()
        if one.constant
    ]
    if not found:
        _, height, width = inspected.latents_shape
        remarks = [f"latents of {height}x{width} are too small for a spectrum: take a larger --image-size"]
    figure = compare_spectra(found) if found else None
    numbers = {name: one.numbers() for name, one in found.items()}
    return Section("spectrum", "Coarse and fine detail", figure, numbers, ABOUT_SPECTRUM, tuple(remarks))


def _correlations(inspected: Inspected) -> Section:
    found = ChannelCorrelations.of(inspected.measured.gaussian)
    remarks = _constant_remarks(found.constant)
    if len(found.matrix) == 1:
        remarks += ("there is one channel, so there is nothing to correlate it with",)
    title = "Channels that repeat others"
    return Section("correlations", title, found.figure(), found.numbers(), ABOUT_CORRELATIONS, remarks)


def _interpolation(inspected: Inspected) -> Section:
    """Interpolates between images 1 and 2, images 3 and 4, and two noises of the fitted Gaussian."""
    kept, gaussian = inspected.measured.kept, inspected.measured.gaussian
    batch = {"images": kept, "indices": range(len(kept))}
    (latents,) = encoded_latents(inspected.model, [batch], sample=False)
    noises = gaussian.sample(2, inspected.latents_shape[1:], inspected.seed)
    pairs = [
        (f"images {i + 1} and {i + 2}", latents[i].cpu(), latents[i + 1].cpu())
        for i in (0, 2)[: len(kept) // 2]
    ]
    pairs.append(("two noises", noises[0], noises[1]))
    found, labels, remarks = [], [], []
    decoding: Any = {"centre": gaussian.mean, **inspected.decoding}
    for label, first, second in pairs:
        try:
            found.append(interpolate(inspected.model, first[None], second[None], **decoding))
            labels.append(label)
        except OppositeEndsError as error:  # latents of one or two values can be opposite
            remarks.append(f"{label}: {error}")
    title, figure, numbers = "From one image to another", None, {}
    if found:
        joined = Interpolation.join(found)
        figure, numbers = joined.figure(labels, inspected.alpha), {"pairs": labels, **joined.numbers()}
    return Section("interpolation", title, figure, numbers, ABOUT_INTERPOLATION, tuple(remarks))


def _samples(inspected: Inspected) -> Section:
    model, gaussian = inspected.model, inspected.measured.gaussian
    about = ABOUT_FITTED
    numbers: dict[str, Any] = {"kl_fitted_to_prior_nats_per_position": gaussian.divergence}
    remarks: list[str] = []
    drawing: Any = {"seed": inspected.seed, **inspected.decoding}
    if isinstance(model, KLVAE):
        found = sample_prior(model, _SAMPLES, inspected.latents_shape, fitted=gaussian, **drawing)
        about = ABOUT_PRIOR + about
        if gaussian.divergence is not None:
            remarks.append(
                f"KL(fitted Gaussian || N(0, I)) is {gaussian.divergence:.3g} nats per latent position; 0 "
                "means that latents are distributed like the prior"
            )
    else:
        found = sample_gaussian(model, gaussian, _SAMPLES, inspected.latents_shape[1:], **drawing)
        remarks.append(f"a {type(model).__name__} has no prior, so only the fitted Gaussian is shown")
    numbers |= found.numbers()
    return Section("samples", "Noise, decoded", found.figure(inspected.alpha), numbers, about, tuple(remarks))


def _traversal(inspected: Inspected) -> Section:
    batch = {"images": inspected.measured.kept[:1], "indices": range(1)}
    (latents,) = encoded_latents(inspected.model, [batch], sample=False)
    gaussian = inspected.measured.gaussian
    channels = len(gaussian.mean)
    moved = range(min(channels, _MOST_CHANNELS))
    found = traverse(inspected.model, latents[0], gaussian.std, channels=moved, **inspected.decoding)
    remarks = _constant_remarks(gaussian.constant)
    if channels > _MOST_CHANNELS:
        remarks += (f"the figure shows the first {_MOST_CHANNELS} of {channels} channels",)
    title, figure = "What each channel does", found.figure(inspected.alpha)
    return Section("traversal", title, figure, found.numbers(), ABOUT_TRAVERSAL, remarks)


def _codes(inspected: Inspected) -> Section:
    model = inspected.model
    assert isinstance(model, VQVAE)
    found = codebook_pictures(
        model, inspected.measured.counts, most=_MOST_CODES // (model.quantize.depth or 1)
    )
    figure = found.figure(inspected.alpha)
    return Section("codebook", "The codes", figure, found.numbers(), found.about)


def _constant_remarks(channels: list[int]) -> tuple[str, ...]:
    if not channels:
        return ()
    return (f"channel(s) {_join(channels)} do not vary over these images: they store nothing",)


def _join(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


KEPT = 4
"""The number of images that are kept, to interpolate between and to traverse from."""

_SPECTRA = ("images", "images, averaged down", "latents")


@torch.no_grad()
def encoded_latents(
    model: Autoencoder, batches: Iterable[Any], *, seed: int = 0, sample: bool = True
) -> Iterator[Tensor]:
    """Yields the raw latents [B, c, h, w] of each batch, as ``encode`` gives them and ``decode`` takes them.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        seed: of the posterior's noise, which is a function of (seed, index of the image).
        sample: True: samples of the posterior, which denoisers learn from; False: its mode. VQ models have
            one value for both, the continuous latent before quantization.

    Raises:
        ValueError: latents that are not finite.
    """
    for batch in batches:
        posterior = model.encode(batch["images"].to(model.device, model.dtype)).latent_dist
        generators: Any = noise_generators(seed, batch["indices"])
        latents = posterior.sample(generators) if sample else posterior.mode()
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"latents of {model.dtype} are not finite: the model's weights are broken, or too large for "
                "this dtype; use float32"
            )
        yield latents


@dataclass(frozen=True, eq=False)
class Measured:
    """Statistics of the raw latents of a number of ``images``.

    Attributes:
        spectra: of the images, of the images averaged down to the latents' size, and of the latents, by name;
            empty where the latents are too small for a spectrum.
        counts: how often each code occurred, of VQ models.
        kept: [n, C, H, W] the first images, n ≤ 4.
    """

    images: int
    gaussian: LatentGaussian
    histograms: ChannelHistograms
    spectra: dict[str, RadialSpectrum]
    counts: Tensor | None
    kept: Tensor


@torch.no_grad()
def measure(model: Autoencoder, batches: Iterable[Any], *, seed: int = 0, alpha: bool = False) -> Measured:
    """Encodes each image once, to samples of the posterior, and measures these in float64.

    All latents are kept in memory. The size of the batches changes the result by rounding only.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1], all of one size, and ``indices`` [B].
        seed: of the posterior's noise.
        alpha: whether the images are RGBA: see ``average_by_alpha``.

    Raises:
        ValueError: no images, images of several sizes, or latents that are not finite or need more than 2 GB.
    """
    gathered: list[Tensor] = []
    kept: list[Tensor] = []
    powers: dict[str, list[MapPower]] = {name: [] for name in _SPECTRA}
    for batch in batches:
        images = batch["images"]
        (latents,) = encoded_latents(model, [batch], seed=seed)
        gathered.append(latents.cpu())
        kept += list(images[: KEPT - len(kept)])
        # The power spectra, image by image: images themselves are not kept
        if min(latents.shape[2:]) >= SMALLEST_SIDE:
            height, width = latents.shape[2:]
            average, precise = partial(F.adaptive_avg_pool2d, output_size=(height, width)), images.double()
            small = average_by_alpha(precise, average) if alpha else average(precise)
            for own, maps in zip(powers.values(), (images, small, latents), strict=True):
                own.append(map_power(maps))
    values, count = gather_channels(gathered)
    return Measured(
        images=count,
        gaussian=LatentGaussian.of(values, count),
        histograms=ChannelHistograms.of(values),
        spectra={name: average_power(parts) for name, parts in powers.items() if parts},
        counts=count_codes(model, gathered) if isinstance(model, VQVAE) else None,
        kept=torch.stack(kept),
    )
