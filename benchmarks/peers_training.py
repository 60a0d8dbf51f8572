"""Training loops of other programs, written out from their published losses and settings, for bench_race.py.

Each has its own losses, optimizers, codes and order of the passes. All get the same backbone and the same
images, one batch per step, and all but diffusers' VQGAN the same discriminator. ``KEPT`` and ``ADAPTED`` say
what is as published and what is not. Where a loss counts only from a published step on, far beyond a short
race, it stays off; its networks still run, as they do in the published programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peers import with_taming_blocks
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentae.losses.feature_maps import IMAGENET_MEAN, IMAGENET_STD


class Peer:
    """A program's networks and optimizers. Subclasses add ``step``.

    Args:
        autoencoder: a VQVAE or KLVAE of diffusers' blocks with fresh weights.
        discriminator: logits [B, 1, h, w] of images [B, 3, H, W].
        lpips: maps two batches of images in [-1, 1] to a distance per image, on VGG16.
        batch_size: images per step.
        learning_rate: None: the published one.
        schedule: step, counted from 0 -> share of the learning rate; None: constant, as published.
        adversarial_start: step from which the discriminator counts; None: the published one.
    """

    KL: ClassVar[bool] = False
    LATENT_CHANNELS: ClassVar[int] = 4
    QUANTIZER: ClassVar[dict[str, Any]] = {}
    LEARNING_RATE: ClassVar[float]
    SCALE_BY_BATCH: ClassVar[bool] = False
    OPTIMIZER: ClassVar[Callable[..., torch.optim.Optimizer]]
    SETTINGS: ClassVar[dict[str, Any]]
    MAX_GRAD_NORM: ClassVar[float | None] = None
    ADVERSARIAL_WEIGHT: ClassVar[float]
    ADVERSARIAL_START: ClassVar[int]
    KEPT: ClassVar[str]
    ADAPTED: ClassVar[str]

    def __init__(
        self,
        autoencoder: nn.Module,
        discriminator: nn.Module,
        lpips: nn.Module,
        *,
        batch_size: int,
        learning_rate: float | None = None,
        schedule: Callable[[int], float] | None = None,
        adversarial_start: int | None = None,
    ) -> None:
        self.autoencoder, self.discriminator = autoencoder.train(), discriminator.train()
        self.lpips = lpips
        published = self.LEARNING_RATE * (batch_size if self.SCALE_BY_BATCH else 1)
        self.learning_rate = published if learning_rate is None else learning_rate
        self.schedule = schedule
        self.start = self.ADVERSARIAL_START if adversarial_start is None else adversarial_start
        make = type(self).OPTIMIZER
        self.optimizers = [
            make(network.parameters(), lr=self.learning_rate, **self.SETTINGS)
            for network in (self.autoencoder, self.discriminator)
        ]
        self.steps = 0

    def step(self, images: Tensor) -> None:
        """Learns from a batch [B, 3, H, W] in [-1, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, autoencoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns reconstructions [B, 3, H, W] in [-1, 1], of the posterior's mode, and codes or None.

        Args:
            autoencoder: the one that learns, or an average of it; in evaluation mode.
        """
        output = autoencoder(images)
        return output.sample, output.indices

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a continued run needs."""
        return {
            "networks": [self.autoencoder.state_dict(), self.discriminator.state_dict()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "steps": self.steps,
            "noise": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state that ``state_dict`` returned."""
        for network, values in zip((self.autoencoder, self.discriminator), state["networks"], strict=True):
            network.load_state_dict(values)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.steps = state["steps"]
        torch.set_rng_state(state["noise"])

    @property
    def _is_adversarial(self) -> float:
        """1 once the discriminator counts, else 0: the published factor on its losses."""
        return float(self.steps >= self.start)

    def _descend(self, network: nn.Module, loss: Tensor) -> None:
        """Makes one optimizer step of the autoencoder or the discriminator."""
        optimizer = self.optimizers[network is self.discriminator]
        if self.schedule is not None:
            for parameters in optimizer.param_groups:
                parameters["lr"] = self.learning_rate * self.schedule(self.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.MAX_GRAD_NORM is not None:
            nn.utils.clip_grad_norm_(network.parameters(), self.MAX_GRAD_NORM)
        optimizer.step()

    def _balance(self, nll: Tensor, generator: Tensor, least: float = 1e-4) -> Tensor:
        """The ratio of both gradients at the decoder's last convolution (VQGAN, eq. 7)."""
        last = self.autoencoder.decoder.conv_out.weight
        first, second = (torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, generator))
        return (first.norm() / (second.norm() + least)).clamp(0, 1e4).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: ½ (E relu(1 − D(x)) + E relu(1 + D(x̂)))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class Taming(Peer):
    """VQModel of taming-transformers under Lightning (arXiv 2012.09841): one turn for each optimizer."""

    LATENT_CHANNELS = 256
    QUANTIZER: ClassVar[dict[str, Any]] = {
        "type": "vector",
        "code_dim": 256,
        "init": "uniform",
        "legacy_loss_order": True,
    }
    LEARNING_RATE, SCALE_BY_BATCH = 4.5e-6, True
    OPTIMIZER, SETTINGS = torch.optim.Adam, {"betas": (0.5, 0.9)}
    ADVERSARIAL_WEIGHT, ADVERSARIAL_START = 0.8, 10_000
    KEPT = (
        "mean(abs(x - y) + LPIPS-VGG), latents and codes of 256 dimensions, a codebook of U(-1/K, 1/K) "
        "trained by gradients with beta on the codebook term, Adam (0.5, 0.9) at 4.5e-6 per image of the "
        "batch, a forward pass and LPIPS in both turns, the discriminator off until step 10,000 "
        "(custom_vqgan.yaml)"
    )
    ADAPTED = "nothing besides the networks"

    def __init__(self, autoencoder: nn.Module, *networks: nn.Module, **settings: Any) -> None:
        super().__init__(with_taming_blocks(autoencoder), *networks, **settings)

    def step(self, images: Tensor) -> None:
        factor = self._is_adversarial
        self.discriminator.requires_grad_(False)
        reconstruction, nll, regulariser = self._losses(images)
        generator = -self.discriminator(reconstruction).mean()
        weight = self.ADVERSARIAL_WEIGHT * self._balance(nll, generator)
        self._descend(self.autoencoder, nll + factor * weight * generator + regulariser)
        self.discriminator.requires_grad_(True)

        self.autoencoder.requires_grad_(False)
        reconstruction, *_ = self._losses(images)
        loss = hinge(self.discriminator(images), self.discriminator(reconstruction))
        self._descend(self.discriminator, factor * loss)
        self.autoencoder.requires_grad_(True)
        self.steps += 1

    def _losses(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the reconstruction, its loss and the loss of the latents, of one forward pass."""
        output = self.autoencoder(images)
        distance = self.lpips(output.sample, images).reshape(-1, 1, 1, 1)
        return output.sample, ((output.sample - images).abs() + distance).mean(), output.commit_loss


class LatentDiffusion(Taming):
    """AutoencoderKL of latent diffusion (arXiv 2112.10752): taming's turns, losses summed over an image."""

    KL = True
    LATENT_CHANNELS = 4
    ADVERSARIAL_WEIGHT, ADVERSARIAL_START = 0.5, 50_001
    KEPT = (
        "sum(abs(x - y) + LPIPS-VGG) + 1e-6 KL per image, a sample of the posterior, Adam (0.5, 0.9) at "
        "4.5e-6 per image of the batch, a forward pass and LPIPS in both turns, the discriminator off until "
        "step 50,001"
    )
    ADAPTED = (
        "the log-variance stays 0, as in the published optimizer. Sums grow with the image, but both terms "
        "grow alike, and Adam cancels a common factor"
    )

    def _losses(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.autoencoder.encode(images).latent_dist
        reconstruction = self.autoencoder.decode(posterior.sample()).sample
        distance = self.lpips(reconstruction, images).reshape(-1, 1, 1, 1)
        nll = ((reconstruction - images).abs() + distance).sum() / len(images)
        return reconstruction, nll, 1e-6 * posterior.kl().mean()


class DiffusersKL(Peer):
    """diffusers' examples/research_projects/autoencoderkl before its discriminator starts."""

    KL = True
    LEARNING_RATE = 4.5e-6
    OPTIMIZER, SETTINGS = torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": 1e-2}
    MAX_GRAD_NORM = 1.0
    ADVERSARIAL_WEIGHT, ADVERSARIAL_START = 1.0, 50_001
    KEPT = (
        "sum((x - y)² + 0.5 LPIPS-VGG without its gradient) + 1e-6 KL per image, AdamW (0.9, 0.999) at "
        "4.5e-6 with weight decay 0.01, clipped to 1, every batch trains the autoencoder until step 50,001"
    )
    ADAPTED = "nothing besides the networks"

    def step(self, images: Tensor) -> None:
        if self.steps >= self.start:
            raise ValueError(
                f"step {self.steps}: the race of this script ends before its discriminator starts"
            )
        posterior = self.autoencoder.encode(images).latent_dist
        reconstruction = self.autoencoder.decode(posterior.sample()).sample
        with torch.no_grad():
            distance = self.lpips(reconstruction, images).reshape(-1, 1, 1, 1)
        squares = F.mse_loss(reconstruction, images, reduction="none")
        nll = (squares + 0.5 * distance).sum() / len(images)
        generator = -self.discriminator(reconstruction).mean()
        weight = self._is_adversarial * self._balance(nll, generator)
        loss = nll + 1e-6 * posterior.kl().mean() + weight * generator
        self._descend(self.autoencoder, loss)
        self.steps += 1


class BoundedDiscriminator(nn.Sequential):
    """The discriminator of diffusers' examples/vqgan, which is Paella's (arXiv 2211.07292).

    Convolutions with spectral norm halve the image, with instance norm after all but the first. A last one of
    1x1 ends in a sigmoid.

    Args:
        channels: of the last layers; each layer before them has half as many, down to an eighth.
        depth: how often the image is halved.
    """

    def __init__(self, channels: int = 512, depth: int = 5) -> None:
        widths = [channels // 2 ** max(0, 3 - layer) for layer in range(depth)]
        layers: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            layers.append(spectral_norm(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)))
            if before != 3:
                layers.append(nn.InstanceNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, kernel_size=1), nn.Sigmoid())


class DiffusersVQGAN(Peer):
    """diffusers' examples/vqgan: batches train the autoencoder and the discriminator in turn."""

    QUANTIZER: ClassVar[dict[str, Any]] = {"type": "vector", "init": "uniform", "legacy_loss_order": True}
    LEARNING_RATE = 1e-4
    OPTIMIZER, SETTINGS = torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": 1e-2}
    MAX_GRAD_NORM = 1.0
    ADVERSARIAL_WEIGHT, ADVERSARIAL_START = 1.0, 0
    KEPT = (
        "images in [0, 1], squared error + squared distance of VGG's third map + adaptive adversarial loss "
        "from the first step, beta on the codebook term, codes of 4 dimensions, hinge loss and gradient "
        "penalty 10, a discriminator with spectral and instance norm and a sigmoid, every second batch for "
        "the discriminator, AdamW (0.9, 0.999) at 1e-4 with weight decay 0.01, clipped to 1"
    )
    ADAPTED = (
        "VGG16 at the images' size instead of VGG19 at 224, without gradients for VGG's weights; 1,024 codes "
        "instead of 16,384; the discriminator halves the image 5 times instead of 6"
    )

    def __init__(self, autoencoder: nn.Module, discriminator: nn.Module, *rest: Any, **settings: Any) -> None:
        own = BoundedDiscriminator().to(next(discriminator.parameters()))
        super().__init__(autoencoder, own, *rest, **settings)

    def step(self, images: Tensor) -> None:
        images = (images + 1) / 2
        output = self.autoencoder(images)
        if self.steps % 2 == 0:
            self._train_autoencoder(images, output)
        else:
            self._train_discriminator(images, output.sample.detach())
        self.steps += 1

    def _train_autoencoder(self, images: Tensor, output: Any) -> None:
        perceptual = F.mse_loss(self._features(images), self._features(output.sample))
        generator = -self.discriminator(output.sample).mean()
        weight = self._balance(perceptual, generator, least=1e-8)
        loss = F.mse_loss(images, output.sample) + output.commit_loss + perceptual + weight * generator
        self._descend(self.autoencoder, loss)

    def _train_discriminator(self, images: Tensor, reconstruction: Tensor) -> None:
        images = images.detach().requires_grad_()
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        (slope,) = torch.autograd.grad(real, images, torch.ones_like(real), create_graph=True)
        penalty = 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        self._descend(self.discriminator, (F.relu(1 + fake) + F.relu(1 - real)).mean() + penalty)

    def _features(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        features = (images - mean) / std
        for number in (1, 2, 3):
            features = getattr(self.lpips.net, f"slice{number}")(features)
        return features

    def reconstruct(self, autoencoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        reconstruction, indices = super().reconstruct(autoencoder, (images + 1) / 2)
        return reconstruction * 2 - 1, indices


class LlamaGen(Peer):
    """The tokenizer of LlamaGen (arXiv 2406.06525): normalised codes, one forward pass for both networks."""

    LATENT_CHANNELS = 256
    QUANTIZER: ClassVar[dict[str, Any]] = {"type": "cosine", "code_dim": 8, "init": "uniform"}
    LEARNING_RATE = 1e-4
    OPTIMIZER, SETTINGS = torch.optim.Adam, {"betas": (0.9, 0.95)}
    MAX_GRAD_NORM = 1.0
    ADVERSARIAL_WEIGHT, ADVERSARIAL_START = 0.5, 20_000
    KEPT = (
        "squared error + LPIPS-VGG, latents of 256 dimensions, normalised codes of 8, Adam (0.9, 0.95) at "
        "1e-4, clipped to 1, the discriminator off until step 20,000 and then with a constant weight"
    )
    ADAPTED = "batch 8 instead of 128, float32 instead of bfloat16, 1,024 codes instead of 16,384"

    def step(self, images: Tensor) -> None:
        weight = self._is_adversarial * self.ADVERSARIAL_WEIGHT
        output = self.autoencoder(images)
        loss = F.mse_loss(output.sample, images) + self.lpips(output.sample, images).mean()
        loss = loss - weight * self.discriminator(output.sample).mean() + output.commit_loss
        self._descend(self.autoencoder, loss)
        real, fake = self.discriminator(images), self.discriminator(output.sample.detach())
        self._descend(self.discriminator, weight * hinge(real, fake))
        self.steps += 1


PEERS: dict[str, type[Peer]] = {
    "taming": Taming,
    "diffusers-vqgan": DiffusersVQGAN,
    "llamagen": LlamaGen,
    "ldm-kl": LatentDiffusion,
    "diffusers-kl": DiffusersKL,
}
"""Name -> program."""
