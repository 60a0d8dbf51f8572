"""scikit-learn's digits and a small VAE of them, on which the guide's mathematics can be seen and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from latentae.losses.kl import Divergence, forward_kl
from latentae.losses.reconstruction import GaussianLikelihood

SIDE = 8
PIXELS = SIDE * SIDE
_HELD_OUT = 297
_LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in [-1, 1] and labels [N] from 0 to 9."""

    images: Tensor
    labels: Tensor


def open_digits() -> tuple[Digits, Digits]:
    """Returns the 1,500 digits to train on and the 297 held out, by other writers."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(bunch.target)
    cut = len(images) - _HELD_OUT
    return Digits(images[:cut], labels[:cut]), Digits(images[cut:], labels[cut:])


class DigitVAE(nn.Module):
    """A VAE of fully connected layers. Latents are [B, d, 1, 1], as latentae's losses take them.

    Args:
        latent_size: d.
        likelihood: of the images, given the decoder's output.
    """

    def __init__(self, latent_size: int, likelihood: GaussianLikelihood, width: int = 128) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.likelihood = likelihood
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(PIXELS, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2 * latent_size),
            nn.Unflatten(1, (2 * latent_size, 1, 1)),
        )
        self.decoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(latent_size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, PIXELS),
            nn.Unflatten(1, (1, SIDE, SIDE)),
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance of q(z|x), [B, d, 1, 1] each."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def log_likelihood(self, latents: Tensor, images: Tensor) -> Tensor:
        """Returns log p(x|z) in nats per image [B]."""
        return -PIXELS * self.likelihood(self.decoder(latents), images)

    def elbo(self, images: Tensor) -> Tensor:
        """Returns one sample's estimate of E_q log p(x|z) - KL(q || p) in nats per image [B]."""
        mean, log_variance = self.encode(images)
        divergence = forward_kl(mean, log_variance).sum(dim=(1, 2, 3))
        return self.log_likelihood(sample(mean, log_variance), images) - divergence


def sample(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns a sample of N(mean, exp(log_variance)), differentiable in both (the reparametrisation)."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def train(
    model: DigitVAE,
    images: Tensor,
    steps: int,
    *,
    kl_weight: float = 1.0,
    divergence: Divergence = forward_kl,
    batch_size: int = 128,
) -> DigitVAE:
    """Trains a VAE on -log p(x|z) + kl_weight * divergence, in place, by AdamW and half a cosine.

    Args:
        images: [N, 1, 8, 8].
        kl_weight: 1 makes it the negative ELBO; 0 trains a plain autoencoder, whose latents are the mean.
    """
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups = [{"params": networks}, {"params": model.likelihood.parameters(), "lr": 10 * _LEARNING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        mean, log_variance = model.encode(batch)
        latents = sample(mean, log_variance) if kl_weight > 0 else mean
        loss = -model.log_likelihood(latents, batch)
        if kl_weight > 0:
            loss = loss + kl_weight * divergence(mean, log_variance).sum(dim=(1, 2, 3))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def class_shares(images: Tensor, digits: Digits) -> Tensor:
    """Returns the share [10] of images [N, 1, 8, 8] whose nearest digit is a 0, a 1, and so on."""
    nearest = torch.cdist(images.flatten(1), digits.images.flatten(1)).argmin(dim=1)
    return torch.bincount(digits.labels[nearest], minlength=10) / len(images)


def enlarge(images: Tensor, side: int) -> Tensor:
    """Returns digits as smooth images [N, 1, side, side], for a convolutional autoencoder."""
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)
