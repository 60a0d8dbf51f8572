"""The results of an evaluation, the JSON file that holds them, and how each metric is named and printed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Value:
    """A metric of a model.

    Attributes:
        value: the number.
        low, high: 95 % bootstrap interval of a mean over images; of KID, one deviation around it; else None.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Value:
        """Restores a value of a JSON file, where null stands for NaN."""
        return cls(math.nan if entry["value"] is None else entry["value"], entry["low"], entry["high"])


@dataclass
class ModelDetails:
    """The facts that a report states about a model besides its metrics.

    Attributes:
        class_name, path, sha256: of the model; the hash is of its weights.
        parameters: their number.
        downsampling_factor, latent_channels: of its latents.
        latents: ``mean``, ``std`` and ``kurtosis``, each a number per channel.
        percentiles: metric → percent (as text) → value, over images.
        cycle_psnr: rounds (as text) → dB.
        remarks: caveats for the reader, such as why a metric is missing.
    """

    class_name: str
    path: str
    sha256: str
    parameters: int
    downsampling_factor: int
    latent_channels: int
    latents: dict[str, list[float]] = field(default_factory=dict)
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)
    cycle_psnr: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass
class TeacherFit:
    """The fit of a model to a denoiser that was trained on the latents of another model, the teacher.

    "Old" is the teacher and "new" the model. Latents are those that a denoiser sees: the posterior's mode,
    after each model's own shift and scale.

    Attributes:
        verdict: ``equal``, ``fits``, ``close``, ``moved`` or ``other``.
        advice: what follows from the numbers, in words.
        new_decoder_on_old_latents, old_decoder_on_new_latents: metric → value, against the originals.
            ``psnr_loss`` is how far they fall below the decoder's own reconstructions, or below the
            teacher's if those are worse, in dB.
        bit_equal: whether the latents are equal to the last bit.
        relative_mse: mean squared difference of the latents over the teacher's variance, each summed over
            the channels.
        channels: ``mean_shift`` in the teacher's deviations, ``std_ratio``, ``correlation`` and
            ``relative_mse``, each a number per channel.
    """

    verdict: str
    advice: str
    new_decoder_on_old_latents: dict[str, Value]
    old_decoder_on_new_latents: dict[str, Value]
    bit_equal: bool
    relative_mse: float
    channels: dict[str, list[float]]

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> TeacherFit:
        """Restores an entry of a JSON file, where null stands for a number that is not finite."""
        decoded = {
            name: {metric: Value.from_dict(value) for metric, value in entry[name].items()}
            for name in ("new_decoder_on_old_latents", "old_decoder_on_new_latents")
        }
        relative_mse = math.nan if entry["relative_mse"] is None else entry["relative_mse"]
        channels = {
            name: [math.nan if value is None else value for value in values]
            for name, values in entry["channels"].items()
        }
        return cls(**{**entry, **decoded, "relative_mse": relative_mse, "channels": channels})


@dataclass
class Picture:
    """One image that the report shows.

    Attributes:
        index, name: which image of the data.
        why: why it is shown, such as ``worst of kl_f8`` or ``random``.
        original: file of the original, relative to the report.
        reconstructions: model → file.
        values: model → metric → value of this image.
    """

    index: int
    name: str
    why: list[str]
    original: str
    reconstructions: dict[str, str]
    values: dict[str, dict[str, float]]


@dataclass
class Crop:
    """A square of 64 pixels that a model reconstructs with wrong colours.

    Attributes:
        model: whose worst squares this is one of.
        index, name: which image of the data.
        left, top: of the square, in pixels.
        delta_e: its mean ΔE under that model.
        original: file of the original, relative to the report.
        reconstructions: model → file.
    """

    model: str
    index: int
    name: str
    left: int
    top: int
    delta_e: float
    original: str
    reconstructions: dict[str, str]


@dataclass
class Results:
    """The contents of a report.

    Attributes:
        protocol: every choice that numbers depend on, and hashes of data, weights and code.
        models: model → metric → value; models in the order they were given, metrics by lower-case names.
        details: model → facts about it.
        pictures: the images that are shown.
        teacher: the model that the others are compared with; None where none was named.
        fit: model → how it fits a denoiser of the teacher, for every model but the teacher.
        crops: the worst squares of each model; older reports have none.
        groups: name → the models that are shown together; empty where none were asked for.
    """

    protocol: dict[str, Any]
    models: dict[str, dict[str, Value]]
    details: dict[str, ModelDetails] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    teacher: str | None = None
    fit: dict[str, TeacherFit] = field(default_factory=dict)
    crops: list[Crop] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the text of ``results.json``; numbers that are not finite become null, which JSON can hold."""
        data = asdict(self)
        if self.teacher is None:  # as before there were teachers
            del data["teacher"], data["fit"]
        for newer in ("crops", "groups"):
            if not data[newer]:
                del data[newer]
        return json.dumps(finite(data), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Restores the object from ``to_json``'s text; null becomes NaN. Raises ValueError for other text."""
        try:
            data = json.loads(text)
            models = {
                model: {metric: Value.from_dict(entry) for metric, entry in metrics.items()}
                for model, metrics in data["models"].items()
            }
            details = {model: ModelDetails(**entry) for model, entry in data["details"].items()}
            pictures = [Picture(**entry) for entry in data["pictures"]]
            fit = {model: TeacherFit.from_dict(entry) for model, entry in data.get("fit", {}).items()}
            crops = [Crop(**entry) for entry in data.get("crops", [])]
            groups = data.get("groups", {})
            return cls(data["protocol"], models, details, pictures, data.get("teacher"), fit, crops, groups)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not the results.json of an evaluation: {error!r}") from error

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads ``results.json``, or the folder of a report; raises ValueError if it is missing or damaged."""
        file = path / "results.json" if path.is_dir() else path
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def finite(data: Any) -> Any:
    """Returns nested data with null in place of numbers that are not finite, which JSON cannot hold."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


@dataclass(frozen=True)
class MetricInfo:
    """The name and the format of a metric.

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
        """Returns the number with the metric's digits; "-" for NaN, and no minus before zeros."""
        if math.isnan(value):
            return "-"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return f"{value:z.{self.digits}f}"


# fmt: off
METRICS: dict[str, MetricInfo] = {
    "rfid": MetricInfo("rFID", "", 3, "lower", "Fréchet distance of InceptionV3 features, reconstructions to originals"),
    "fd_vgg16": MetricInfo("FD-VGG16", "", 3, "lower", "Fréchet distance of VGG16 features; on a scale of its own, no FID"),
    "ifid": MetricInfo("iFID", "", 3, "lower", "Fréchet distance of InceptionV3 features of images decoded halfway between latents, to originals"),
    "fd_dinov2": MetricInfo("FD-DINOv2", "", 3, "lower", "Fréchet distance of DINOv2 ViT-L/14 features, which follow people's judgement better than Inception's"),
    "clip_mmd": MetricInfo("CLIP-MMD", "", 4, "lower", "1000 times the squared MMD of CLIP embeddings, Gaussian kernel of deviation 10, as CMMD defines it"),
    "kid": MetricInfo("KID", "", 5, "lower", "Kernel distance of InceptionV3 features; the range is its deviation over subsets"),
    "precision": MetricInfo("precision", "", 4, "higher", "Share of reconstructions within the originals' manifold: InceptionV3 features, 3 neighbours, at most 10,000 images"),
    "recall": MetricInfo("recall", "", 4, "higher", "Share of originals within the reconstructions' manifold, likewise"),
    "lpips_alex": MetricInfo("LPIPS (alex)", "", 4, "lower", "Learned perceptual distance, AlexNet"),
    "lpips_vgg": MetricInfo("LPIPS (vgg)", "", 4, "lower", "Learned perceptual distance, VGG16"),
    "psnr": MetricInfo("PSNR", "dB", 2, "higher", "Peak signal-to-noise ratio, mean over images"),
    "psnr_downscaled": MetricInfo(
        "PSNR downscaled", "dB", 2, "higher", "Of a model that upscales: at the size of what its encoder sees"
    ),
    "ssim": MetricInfo("SSIM", "", 4, "higher", "Structural similarity"),
    "ms_ssim": MetricInfo("MS-SSIM", "", 4, "higher", "Structural similarity over five scales"),
    "alpha_psnr": MetricInfo("alpha PSNR", "dB", 2, "higher", "PSNR of alpha alone, at most 60 dB per image"),
    "psnr_black": MetricInfo("PSNR, on black", "dB", 2, "higher", "PSNR of composites over black, at most 60 dB per image"),
    "psnr_white": MetricInfo("PSNR, on white", "dB", 2, "higher", "PSNR of composites over white, at most 60 dB per image"),
    "psnr_random": MetricInfo("PSNR, on random colours", "dB", 2, "higher", "PSNR of composites over a colour per image, at most 60 dB"),
    "l1": MetricInfo("L1", "", 4, "lower", "Mean absolute difference, of images in [-1, 1]"),
    "delta_e": MetricInfo("ΔE 2000", "", 2, "lower", "Mean colour difference per pixel by CIEDE2000; 1 is just visible side by side"),
    "mean_shift_red": MetricInfo("mean shift, red", "levels", 2, None, "Mean of the channel, reconstruction minus original, of 255 levels; a tint if the channels differ"),
    "mean_shift_green": MetricInfo("mean shift, green", "levels", 2, None, "Likewise"),
    "mean_shift_blue": MetricInfo("mean shift, blue", "levels", 2, None, "Likewise"),
    "std_shift_red": MetricInfo("std shift, red", "levels", 2, None, "Standard deviation of the channel, likewise; negative: contrast or detail is lost"),
    "std_shift_green": MetricInfo("std shift, green", "levels", 2, None, "Likewise"),
    "std_shift_blue": MetricInfo("std shift, blue", "levels", 2, None, "Likewise"),
    "snr_2px": MetricInfo("SNR, 2-4 px", "dB", 2, "higher", "Power of the image's details of 2 to 4 pixels over that of their error; 0 dB: nothing is left of them"),
    "snr_4px": MetricInfo("SNR, 4-8 px", "dB", 2, "higher", "Likewise, of 4 to 8 pixels"),
    "snr_8px": MetricInfo("SNR, 8-16 px", "dB", 2, "higher", "Likewise, of 8 to 16 pixels"),
    "snr_16px": MetricInfo("SNR, 16-32 px", "dB", 2, "higher", "Likewise, of 16 to 32 pixels"),
    "snr_32px": MetricInfo("SNR, above 32 px", "dB", 2, "higher", "Likewise, of all coarser structure but the mean"),
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
    "psnr_loss": MetricInfo("PSNR lost", "dB", 2, "lower", "Below the decoder's own reconstructions, or the teacher's if worse; negative: above them"),
}
# fmt: on
"""Metric → how it is shown, in the order in which reports show them."""


def info(name: str) -> MetricInfo:
    """Returns how a metric is shown; an unknown metric is shown under its own name."""
    return METRICS.get(name) or MetricInfo(name, "", 4, None, "")


def number(value: float, name: str) -> str:
    """Returns a number with its metric's digits; "-" for NaN."""
    return info(name).number(value)
