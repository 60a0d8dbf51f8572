"""From VAE to VQ-VAE to VQGAN: four models of the same rate on the built-in photographs.

Trains the models first, unless the folder of --runs has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from drawing import Drawing, draw, from_pixels, label_rows, main, new_figure, show_images
from runs import IMAGE_SIZE, RUNS, STEPS, read_log, train
from torch import Tensor

from latentae import load_autoencoder
from latentae.build import build_lpips
from latentae.data import CenterCrop, ImageDataset, validation_photos
from latentae.evaluation.metrics import psnr
from latentae.evaluation.rate import CodeMeter, kl_bits_per_pixel
from latentae.latents.inspection import codebook_pictures, count_codes, radial_power_spectrum
from latentae.report.figures import COLOURS

MODELS = ("kl", "vq", "perceptual", "vqgan")
_SHOWN = (2, 6, 13, 18, 25, 27, 31, 34)
"""Of the 36 validation images."""


def open_photographs(size: int = IMAGE_SIZE) -> Tensor:
    """Returns the 36 validation images [36, 3, size, size] in [-1, 1], as the runs measure on them."""
    dataset = ImageDataset(validation_photos(), CenterCrop(size), channels=3)
    return torch.stack([dataset[0, index]["images"] for index in range(len(dataset))])


def bits_per_pixel(model: Any, images: Tensor) -> float:
    """Returns the KL divergence, or the cost of the codes at their measured frequencies, in bits."""
    size = images.shape[-2:]
    if hasattr(model, "quantize"):
        meter = CodeMeter(model.num_codes)
        meter.add(model.encode_indices(images), *size)
        return meter.result().entropy_bits_per_pixel
    posterior = model.encode(images).latent_dist
    return kl_bits_per_pixel(posterior.mean, posterior.logvar, *size).mean().item()


def fine_power(images: Tensor) -> float:
    """Returns the power per frequency of details of 2 to 4 pixels, the mean over images and channels."""
    spectrum = radial_power_spectrum(images)
    return spectrum.power[:, spectrum.frequency > 0.25].mean().item()


@draw
def make_reconstructions(
    seed: int = 0, *, runs: Path, steps: int = STEPS, trunk: str = "vgg", changes: Sequence[str] = ()
) -> Drawing:
    """Draws reconstructions by the four models, and what each measure says about them.

    The perceptual loss of the training uses AlexNet; LPIPS is measured with another network.
    """
    images = open_photographs()
    lpips = build_lpips(trunk)
    rows, labels = [images[list(_SHOWN)]], ["photographs"]
    numbers: dict[str, float] = {}
    for name in MODELS:
        model = _open(train(runs, name, seed, steps, changes))
        labels.append(RUNS[name].label.replace(" (", "\n("))
        with torch.no_grad():
            reconstruction = model(images).sample.clamp(-1, 1)
            rows.append(reconstruction[list(_SHOWN)])
            numbers |= {
                f"{name}_psnr": psnr(reconstruction, images).mean().item(),
                f"{name}_lpips": lpips(reconstruction, images).mean().item(),
                f"{name}_fine_power": fine_power(reconstruction) / fine_power(images),
                f"{name}_bits_per_pixel": bits_per_pixel(model, images),
            }
    figure = new_figure(9.2, 6.6)
    grid = figure.add_gridspec(2, 3, height_ratios=(2.5, 1))
    show_images(figure.add_subplot(grid[0, :]), torch.cat(rows), len(_SHOWN))
    label_rows(figure.axes[0], labels)
    titles = {"psnr": "PSNR, dB: higher is better", "lpips": "LPIPS: lower is better"}
    titles["fine_power"] = "power of fine detail; photographs: 1"
    for place, (key, title) in enumerate(titles.items()):
        axes = figure.add_subplot(grid[1, place])
        values = [numbers[f"{name}_{key}"] for name in MODELS]
        bars = axes.barh(range(len(MODELS)), values, color=COLOURS[: len(MODELS)])
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set(xlim=(0, 1.2 * max(values)), ylim=(len(MODELS) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(MODELS)), ["KL", "VQ", "+ percept.", "VQGAN"] if place == 0 else [""] * 4)
        axes.set_title(title, loc="left")
    return Drawing(figure, numbers)


@draw
def make_codebook(
    seed: int = 0, *, runs: Path, steps: int = STEPS, name: str = "vqgan", changes: Sequence[str] = ()
) -> Drawing:
    """Draws each code of a model as the pixels that it decodes to, the most used first."""
    model = _open(train(runs, name, seed, steps, changes))
    with torch.no_grad():
        counts = count_codes(model, model.encode(open_photographs()).latents)
    pictures = codebook_pictures(model, counts)
    table = pictures.tables[0]
    numbers = {"usage": table.usage or 0.0, "perplexity": table.perplexity or 0.0}
    return Drawing(from_pixels(pictures.figure().picture), numbers)


@draw
def make_curves(seed: int = 0, *, runs: Path, steps: int = STEPS, changes: Sequence[str] = ()) -> Drawing:
    """Draws the logs of the four runs, to compare one's own with."""
    panels = {
        "reconstruction": "reconstruction (L1)",
        "validation_psnr": "validation_psnr, dB",
        "validation_lpips": "validation_lpips",
        "kl_nats": "kl_nats",
        "codebook_perplexity": "codebook_perplexity",
        "adversarial_weight": "adversarial_weight",
        "accuracy_fake": "accuracy_fake (discriminator)",
        "logit_gap": "logit_gap",
        "autoencoder_gradient_norm": "autoencoder_gradient_norm",
    }
    figure = new_figure(9.2, 6.4)
    axes = figure.subplots(3, 3)
    numbers: dict[str, float] = {}
    for name, colour in zip(MODELS, COLOURS, strict=False):
        run = train(runs, name, seed, steps, changes)
        for place, key in enumerate(panels):
            where, values = read_log(run, key)
            if values:
                axes.flat[place].plot(where, values, color=colour, label=RUNS[name].label)
                numbers[f"{name}_{key}"] = values[-1]
    for place, (key, title) in enumerate(panels.items()):
        axes.flat[place].set_title(title, loc="left")
        if key in ("autoencoder_gradient_norm", "adversarial_weight"):
            axes.flat[place].set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    for last in axes[-1]:
        last.set_xlabel("step")
    return Drawing(figure, numbers)


def _open(run: Path) -> Any:
    return load_autoencoder(run / "model").eval()


if __name__ == "__main__":
    figures = {"photographs": make_reconstructions, "codebook": make_codebook, "curves": make_curves}
    main(__doc__, figures, with_runs=True)
