"""What each metric is called, how its numbers are written, what it means, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown.

    Attributes:
        label: the metric's usual name.
        unit: stands after the number, such as ``dB``; "" for none.
        digits: digits after the decimal point.
        better: which way is better; None where neither is.
        meaning: one line for a reader who does not know the metric.
    """

    label: str
    unit: str
    digits: int
    better: Literal["higher", "lower"] | None
    meaning: str

    def number(self, value: float) -> str:
        """Returns the number with the metric's digits; "-" for NaN."""
        if math.isnan(value):
            return "-"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return f"{value:.{self.digits}f}"


# fmt: off
METRICS: dict[str, MetricInfo] = {
    "rfid": MetricInfo("rFID", "", 3, "lower", "Fréchet distance of InceptionV3 features, reconstructions to originals"),
    "fd_vgg16": MetricInfo("FD-VGG16", "", 3, "lower", "Fréchet distance of VGG16 features; on a scale of its own, no FID"),
    "kid": MetricInfo("KID", "", 5, "lower", "Kernel distance of InceptionV3 features; the range is its deviation over subsets"),
    "lpips_alex": MetricInfo("LPIPS (alex)", "", 4, "lower", "Learned perceptual distance, AlexNet"),
    "lpips_vgg": MetricInfo("LPIPS (vgg)", "", 4, "lower", "Learned perceptual distance, VGG16"),
    "psnr": MetricInfo("PSNR", "dB", 2, "higher", "Peak signal-to-noise ratio, mean over images"),
    "ssim": MetricInfo("SSIM", "", 4, "higher", "Structural similarity"),
    "ms_ssim": MetricInfo("MS-SSIM", "", 4, "higher", "Structural similarity over five scales"),
    "l1": MetricInfo("L1", "", 4, "lower", "Mean absolute difference, of images in [-1, 1]"),
    "bits_per_pixel": MetricInfo("code bits/px", "", 4, "lower", "Fixed-length codes: tokens · log₂ K per pixel"),
    "entropy_bits_per_pixel": MetricInfo("entropy bits/px", "", 4, "lower", "The entropy of the code frequencies, per pixel"),
    "kl_bits_per_pixel": MetricInfo("KL bits/px", "", 3, None, "KL(q‖N(0, I)) per pixel"),
    "codebook_usage": MetricInfo("codes in use", "", 3, "higher", "Share of the codes that occur"),
    "codebook_perplexity": MetricInfo("perplexity", "", 1, "higher", "2 to the entropy of the code frequencies"),
    "cycle_psnr_2": MetricInfo("PSNR, 2 rounds", "dB", 2, "higher", "After encoding and decoding twice"),
    "cycle_psnr_5": MetricInfo("PSNR, 5 rounds", "dB", 2, "higher", "After encoding and decoding five times"),
    "cycle_psnr_10": MetricInfo("PSNR, 10 rounds", "dB", 2, "higher", "After encoding and decoding ten times"),
    "images_per_second": MetricInfo("images/s", "", 1, "higher", "Encoding and decoding, on the machine named in the protocol"),
    "fid_generated": MetricInfo("gFID", "", 3, "lower", "As FD, generated, of InceptionV3 features"),
    "fid_reconstructed": MetricInfo("FID, reconstructed", "", 3, None, "As FD, reconstructed"),
    "fid_real": MetricInfo("FID, real", "", 3, None, "As FD, real, of InceptionV3 features"),
    "fid_noise": MetricInfo("FID, noise", "", 3, None, "As FD, noise, of InceptionV3 features"),
    "fd_vgg16_generated": MetricInfo("FD-VGG16, generated", "", 3, "lower", "Fréchet distance of VGG16 features, samples to training images"),
    "fd_vgg16_reconstructed": MetricInfo("FD, reconstructed", "", 3, None, "The same for as many reconstructed training images"),
    "fd_vgg16_real": MetricInfo("FD, real", "", 3, None, "The same for as many real images (at most half) against the other ones"),
    "fd_vgg16_noise": MetricInfo("FD, noise", "", 3, None, "The same for decoded noise: nothing was learned"),
    "flow_loss": MetricInfo("flow loss", "", 4, None, "Held-out error of the velocity; not comparable between latent spaces"),
    "relative_flow_loss": MetricInfo("flow loss, relative", "", 4, None, "Divided by what knowing each channel's variance alone gives"),
    "nearest_samples": MetricInfo("nearest, samples", "", 2, None, "Feature distance to the nearest training image, median over samples"),
    "nearest_held_out": MetricInfo("nearest, held out", "", 2, None, "The same for reconstructed held-out images: what new pictures have"),
    "nearest_copies": MetricInfo("nearest, copies", "", 2, None, "The same for reconstructed training images: what copies have"),
    "copied_share": MetricInfo("suspiciously near", "", 3, None, "Share of samples nearer than 95 % of held-out images; 0.05 is what new images give"),
}
# fmt: on
"""Metric → how it is shown, in the order in which reports show them."""


def info(name: str) -> MetricInfo:
    """Returns how a metric is shown; an unknown metric is shown under its own name."""
    return METRICS.get(name) or MetricInfo(name, "", 4, None, "")


def number(value: float, name: str) -> str:
    """Returns a number with its metric's digits; "-" for NaN."""
    return info(name).number(value)
