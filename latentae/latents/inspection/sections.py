"""The parts of an inspection: each a figure, its numbers, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentae.latents.inspection import (
    codes,
    correlations,
    histograms,
    spectrum,
    traversal,
)
from latentae.latents.inspection import (
    decoding as interpolation,
)
from latentae.latents.inspection import (
    samples as prior,
)
from latentae.latents.inspection.encoding import Autoencoder, encoded_latents
from latentae.latents.inspection.measuring import Measured
from latentae.models import KLVAE, VQVAE
from latentae.report.grids import Figure

NAMES = ("histograms", "spectrum", "correlations", "interpolation", "samples", "traversal", "codebook")
"""Of all sections that there can be."""

_MOST_CHANNELS = 16
_SAMPLES = 7
# Beside one another, all tables of a composition.
_MOST_CODES = 1024


@dataclass(frozen=True, eq=False)
class Section:
    """One part.

    Attributes:
        name: of its files, and in the numbers.
        title: above it.
        figure: None where it could not be made, and the remarks say why.
        numbers: for JSON.
        about: what the figure shows, in sentences.
        remarks: what must be known of this model or these images.
    """

    name: str
    title: str
    figure: Figure | None
    numbers: dict[str, Any]
    about: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Inspected:
    """What the sections are made of: a model, what was measured of it, and how to decode."""

    model: Autoencoder
    measured: Measured
    seed: int
    batch_size: int

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
        """Arguments that everything that decodes takes."""
        return {"size": self.size, "batch_size": self.batch_size}


def all_sections(inspected: Inspected) -> list[Section]:
    """Every part that there is for this kind of model, in the order of a report."""
    makers: list[Callable[[Inspected], Section]] = [
        _histograms,
        _spectra,
        _correlations,
        _interpolation,
        _samples,
        _traversal,
    ]
    if isinstance(inspected.model, VQVAE):
        makers.append(_codes)
    return [make(inspected) for make in makers]


def _histograms(inspected: Inspected) -> Section:
    found = inspected.measured.histograms
    constant = [number for number, channel in enumerate(found.channels) if channel.constant]
    return Section(
        "histograms",
        "Values of the channels",
        found.figure(_MOST_CHANNELS),
        found.numbers(),
        histograms.ABOUT,
        _said_of_constant(constant),
    )


def _spectra(inspected: Inspected) -> Section:
    found = inspected.measured.spectra
    remarks = [
        f"{name}: constant in channel(s) {_listed(one.constant)}, which have no spectrum"
        for name, one in found.items()
        if one.constant
    ]
    if not found:
        _, height, width = inspected.latents_shape
        remarks = [f"latents of {height}x{width} are too small for a spectrum: take a larger --image-size"]
    return Section(
        "spectrum",
        "Coarse and fine detail",
        spectrum.compare_spectra(found) if found else None,
        {name: one.numbers() for name, one in found.items()},
        spectrum.ABOUT,
        tuple(remarks),
    )


def _correlations(inspected: Inspected) -> Section:
    found = correlations.ChannelCorrelations.of(inspected.measured.gaussian)
    remarks = _said_of_constant(found.constant)
    if len(found.matrix) == 1:
        remarks += ("there is one channel, and nothing for it to be correlated with",)
    return Section(
        "correlations",
        "Channels that repeat others",
        found.figure(),
        found.numbers(),
        correlations.ABOUT,
        remarks,
    )


def _interpolation(inspected: Inspected) -> Section:
    """Between the first two and the next two images, and between two noises of the fitted Gaussian."""
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
    for label, first, second in pairs:
        try:
            found.append(
                interpolation.interpolate(
                    inspected.model, first[None], second[None], centre=gaussian.mean, **inspected.decoding
                )
            )
            labels.append(label)
        except interpolation.OppositeEndsError as error:  # which latents of one or two values may be
            remarks.append(f"{label}: {error}")
    joined = interpolation.joined(found) if found else None
    return Section(
        "interpolation",
        "From one image to another",
        None if joined is None else joined.figure(labels),
        {} if joined is None else {"pairs": labels, **joined.numbers()},
        interpolation.ABOUT,
        tuple(remarks),
    )


def _samples(inspected: Inspected) -> Section:
    model, gaussian = inspected.model, inspected.measured.gaussian
    about = prior.ABOUT_FITTED
    numbers: dict[str, Any] = {"kl_fitted_to_prior_nats_per_position": gaussian.divergence}
    remarks: list[str] = []
    if isinstance(model, KLVAE):
        found = prior.sample_prior(
            model,
            _SAMPLES,
            inspected.latents_shape,
            fitted=gaussian,
            seed=inspected.seed,
            **inspected.decoding,
        )
        about = prior.ABOUT_PRIOR + about
        if gaussian.divergence is not None:
            remarks.append(
                f"KL(fitted Gaussian || N(0, I)) is {gaussian.divergence:.3g} nats a latent position: 0 "
                "where the prior is where latents are"
            )
    else:
        found = prior.sample_gaussian(
            model, gaussian, _SAMPLES, inspected.latents_shape[1:], seed=inspected.seed, **inspected.decoding
        )
        remarks.append(
            f"a {type(model).__name__} was trained towards no prior, so only the fitted Gaussian is shown"
        )
    return Section(
        "samples",
        "Noise, decoded",
        found.figure(),
        {**numbers, **found.numbers()},
        about,
        tuple(remarks),
    )


def _traversal(inspected: Inspected) -> Section:
    batch = {"images": inspected.measured.kept[:1], "indices": range(1)}
    (latents,) = encoded_latents(inspected.model, [batch], sample=False)
    gaussian = inspected.measured.gaussian
    channels = len(gaussian.mean)
    found = traversal.traverse(
        inspected.model,
        latents[0],
        gaussian.std,
        channels=range(min(channels, _MOST_CHANNELS)),
        **inspected.decoding,
    )
    remarks = _said_of_constant(gaussian.constant)
    if channels > _MOST_CHANNELS:
        remarks += (f"shown are the first {_MOST_CHANNELS} of {channels} channels",)
    return Section(
        "traversal", "What each channel does", found.figure(), found.numbers(), traversal.ABOUT, remarks
    )


def _codes(inspected: Inspected) -> Section:
    model = inspected.model
    assert isinstance(model, VQVAE)
    found = codes.codebook_pictures(
        model, inspected.measured.counts, most=_MOST_CODES // (model.quantize.depth or 1)
    )
    return Section("codebook", "The codes", found.figure(), found.numbers(), found.about)


def _said_of_constant(channels: list[int]) -> tuple[str, ...]:
    if not channels:
        return ()
    return (f"channel(s) {_listed(channels)} do not vary over these images: nothing is stored in them",)


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
