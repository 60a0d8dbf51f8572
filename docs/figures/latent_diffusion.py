"""A small latent diffusion model of digits, with the right scaling factor and with two wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from digits import Digits, enlarge, open_digits
from drawing import Drawing, draw, main, new_figure, show_images
from sklearn.svm import SVC
from torch import Tensor

from latentae import KLVAE
from latentae.evaluation.metrics import to_images
from latentae.latents.calibration import calibrate
from latentae.latents.statistics import measure_latents
from latentae.losses.kl import KLRegulariser
from latentae.losses.reconstruction import ReconstructionObjective, l2
from latentae.probe.denoiser import DenoiserSize, FlowValidation, LatentBatch, build_denoiser
from latentae.probe.generation import sample_images
from latentae.probe.pipeline import build_pipeline, pipeline_autoencoder
from latentae.probe.training import DenoiserTraining, LatentBatches, TrainingSettings
from latentae.report.figures import COLOURS

SIDE = 16
FACTORS = {"right": 1.0, "too_small": 0.1, "too_large": 10.0}
"""Name -> what the measured scaling factor is multiplied by."""

TITLES = {
    "right": "measured factor s: variance 1",
    "too_small": "s / 10: variance 0.01",
    "too_large": "10 s: variance 100",
}
_ROWS = 4
_SAMPLER_STEPS = 20
_TOKEN_SIDE, _BATCH = 4, 64
_SIZE = DenoiserSize(width=64, depth=3)


@dataclass(frozen=True, eq=False)
class EncodedDigits:
    """Latents [N, c, h, w] scaled for a denoiser, with labels, as latentae's probe reads them."""

    latents: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"latents": self.latents[index], "label": int(self.labels[index])}

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the latents are the same in every epoch."""


def train_autoencoder(images: Tensor, steps: int, batch_size: int = 32) -> KLVAE:
    """Trains a KL-VAE that downsamples by 2, and gives it the scaling factor of its own latents."""
    model = KLVAE(
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=None,
    )
    objective, regulariser = ReconstructionObjective(l2), KLRegulariser(1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        output = model(batch, sample_posterior=True)
        loss = objective(output.sample, batch)[0] + regulariser(output)["kl"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    batches = [{"images": images, "indices": torch.arange(len(images))}]
    calibrate(model, measure_latents(model, batches))
    return model


def generate(
    model: KLVAE,
    training: LatentBatch,
    held_out: LatentBatch,
    labels: list[int],
    *,
    seed: int,
    steps: int,
    size: DenoiserSize,
) -> tuple[Tensor, list[tuple[int, float]]]:
    """Trains a denoiser and returns an image per label, and its relative losses, (step, loss).

    Args:
        training, held_out: latents that are not scaled yet.
    """
    latents, own = (model.normalise(part.latents) for part in (training, held_out))
    _, channels, height, width = latents.shape
    denoising = DenoiserTraining(
        build_denoiser((channels, height, width), _TOKEN_SIDE, size, seed),
        LatentBatches(EncodedDigits(latents, training.labels), _BATCH, seed),
        FlowValidation(LatentBatch(own, held_out.labels), latents.var(dim=(0, 2, 3)), seed),
        TrainingSettings(steps, seed, points=8),
        torch.device("cpu"),
        has_labels=True,
    )
    denoising.advance(steps)
    denoising.use_average()
    pipeline = build_pipeline(denoising.denoiser, pipeline_autoencoder(model).vae)
    images = torch.cat(list(sample_images(pipeline, labels, seed=seed, steps=_SAMPLER_STEPS)))
    return to_images(images)[:, :1], [(point.step, point.relative_loss) for point in denoising.curve]


@draw
def make(
    seed: int = 0,
    autoencoder_steps: int = 200,
    denoiser_steps: int = 1200,
    size: DenoiserSize = _SIZE,
    samples: int = 100,
    count: int | None = None,
) -> Drawing:
    """Trains an autoencoder, and a denoiser per factor; draws their samples, a column per digit asked for.

    Args:
        count: of the digits to train on and of those held out; None: all.
    """
    small = open_digits()
    training, held_out = (Digits(enlarge(part.images[:count], SIDE), part.labels[:count]) for part in small)
    classifier = SVC().fit(training.images.flatten(1), training.labels)
    torch.manual_seed(seed)
    model = train_autoencoder(training.images, autoencoder_steps)
    right = float(model.config.scaling_factor)
    with torch.no_grad():
        latents, own = (
            LatentBatch(model.encode(part.images).latents, part.labels) for part in (training, held_out)
        )
        reconstructed = model.decode(own.latents).sample
    numbers = {
        "scaling_factor": right,
        "latent_std": 1 / right,
        "reconstruction_error": l2(reconstructed, held_out.images).mean().item(),
        "readable_reconstructions": float(classifier.score(reconstructed.flatten(1), held_out.labels)),
    }
    labels = [number % 10 for number in range(samples)]
    figure = new_figure(9.2, 5.2)
    axes = figure.subplots(2, 2).flat
    for place, (name, factor) in enumerate(FACTORS.items()):
        model.change_config(scaling_factor=right * factor)
        images, curve = generate(model, latents, own, labels, seed=seed, steps=denoiser_steps, size=size)
        numbers[f"{name}_readable"] = float(classifier.score(images.flatten(1), labels))
        numbers[f"{name}_relative_loss"] = curve[-1][1]
        show_images(axes[place], images[: 10 * _ROWS], 10, TITLES[name])
        axes[3].plot(*zip(*curve, strict=True), ".-", color=COLOURS[place], label=TITLES[name])
    axes[3].set(xlabel="step of the denoiser", ylabel="held-out flow loss, relative")
    axes[3].legend()
    return Drawing(figure, numbers)


if __name__ == "__main__":
    main(__doc__, {"latent_diffusion": make})
