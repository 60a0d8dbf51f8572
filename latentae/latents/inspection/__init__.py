"""What a latent space looks like: each function gives numbers, and of them a labelled figure."""

from latentae.latents.inspection.channels import LatentGaussian, fit_gaussian
from latentae.latents.inspection.codes import CodebookPictures, codebook_pictures, count_codes
from latentae.latents.inspection.correlations import ChannelCorrelations, channel_correlations
from latentae.latents.inspection.decoding import Interpolation, interpolate, slerp
from latentae.latents.inspection.encoding import encoded_latents
from latentae.latents.inspection.histograms import ChannelHistograms, channel_histograms
from latentae.latents.inspection.samples import LatentSamples, sample_gaussian, sample_prior
from latentae.latents.inspection.spectrum import RadialSpectrum, compare_spectra, radial_power_spectrum
from latentae.latents.inspection.traversal import Traversal, traverse
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
