"""Measurements of a latent space; each result has ``.figure()`` and ``.numbers()``."""

from latentae.latents.inspection.channels import (
    ChannelCorrelations,
    ChannelHistograms,
    LatentGaussian,
    channel_correlations,
    channel_histograms,
    fit_gaussian,
)
from latentae.latents.inspection.codes import CodebookPictures, codebook_pictures, count_codes
from latentae.latents.inspection.decoding import (
    Interpolation,
    LatentSamples,
    Traversal,
    interpolate,
    sample_gaussian,
    sample_prior,
    traverse,
)
from latentae.latents.inspection.sections import encoded_latents
from latentae.latents.inspection.spectrum import RadialSpectrum, compare_spectra, radial_power_spectrum
from latentae.models.interpolation import slerp
from latentae.report.grids import Figure

__all__ = [
    "ChannelCorrelations",
    "ChannelHistograms",
    "CodebookPictures",
    "Figure",
    "Interpolation",
    "LatentGaussian",
    "LatentSamples",
    "RadialSpectrum",
    "Traversal",
    "channel_correlations",
    "channel_histograms",
    "codebook_pictures",
    "compare_spectra",
    "count_codes",
    "encoded_latents",
    "fit_gaussian",
    "interpolate",
    "radial_power_spectrum",
    "sample_gaussian",
    "sample_prior",
    "slerp",
    "traverse",
]
