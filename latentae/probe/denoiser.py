"""The denoiser and its loss.

The denoiser is diffusers' DiT (Peebles and Xie 2023, arXiv 2212.09748), of the same size for every model. It
learns by rectified flow (Liu, Gong and Liu 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206), in
diffusers' direction: at time t = 0 there are the data x, at t = 1 the noise ε, and x_t = (1 − t) x + t ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from latentae.data.seeding import HELD_OUT_NOISE, HELD_OUT_TIMES, torch_generator

NULL_LABEL = 1000
"""The label for "no class". ``DiTPipeline`` always uses this one, however many classes there are."""

NUM_TRAIN_TIMESTEPS = 1000
"""The factor by which diffusers' schedulers multiply the time for the denoiser."""

_HEAD_CHANNELS = 32
_LABEL_STD = 0.5
_FEWEST_DRAWS = 256


@dataclass(frozen=True)
class DenoiserSize:
    """The size of a denoiser.

    Attributes:
        width: channels of a token, a multiple of 32.
        depth: transformer blocks.
        largest_side: most tokens along a side; patches are larger where latents have more positions.

    Raises:
        ValueError: a value is out of its range.
    """

    width: int = 192
    depth: int = 6
    largest_side: int = 16

    def __post_init__(self) -> None:
        if self.width < _HEAD_CHANNELS or self.width % _HEAD_CHANNELS:
            raise ValueError(
                f"width is {self.width}, but must be a multiple of {_HEAD_CHANNELS}, the size of a head"
            )
        for name in ("depth", "largest_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")


def common_token_side(latent_sides: Sequence[int], largest_side: int) -> int:
    """Returns the largest number of tokens per side, up to ``largest_side``, that divides all these sides.

    Raises:
        ValueError: no number above one divides all sides.
    """
    limit = min(*latent_sides, largest_side) if latent_sides else 0
    for side in range(limit, 1, -1):
        if all(latent_side % side == 0 for latent_side in latent_sides):
            return side
    raise ValueError(
        f"latents of {', '.join(map(str, latent_sides))} positions a side cannot all be cut into equally "
        "many patches: choose another --image-size, or probe these models apart"
    )


def build_denoiser(
    latent_shape: tuple[int, int, int], token_side: int, size: DenoiserSize, seed: int
) -> DiTTransformer2DModel:
    """Builds a denoiser of latents [c, h, h], initialised as in the paper, as a function of ``seed``.

    It stays in eval mode, also in training: in training mode diffusers' class embeddings drop labels by
    their own random numbers, separately in each block. Nothing else depends on the mode.

    Args:
        token_side: patches along a side, a divisor of h.

    Raises:
        ValueError: latents that are not square, or that ``token_side`` does not divide.
    """
    channels, height, width = latent_shape
    if height != width or height % token_side:
        raise ValueError(
            f"latents of {height} x {width} positions cannot be cut into {token_side} x {token_side} patches"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = DiTTransformer2DModel(
            sample_size=height,
            patch_size=height // token_side,
            in_channels=channels,
            out_channels=channels,
            num_layers=size.depth,
            num_attention_heads=size.width // _HEAD_CHANNELS,
            attention_head_dim=_HEAD_CHANNELS,
            num_embeds_ada_norm=NULL_LABEL,
        )
        _initialise(denoiser)
    return denoiser.eval()


def count_parameters(denoiser: nn.Module) -> int:
    """Returns the number of parameters, with all rows of the label tables, also those of unused labels."""
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _initialise(denoiser: DiTTransformer2DModel) -> None:
    """adaLN-Zero: every block begins as the identity, and the first prediction is zero.

    Times and labels are embedded with larger weights than the paper's 0.02, which grow too slowly for a short
    training: with them a wrong label costs twice as much in loss after 400 steps.
    """
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_LABEL_STD)
    embedding = denoiser.pos_embed.proj
    nn.init.xavier_uniform_(embedding.weight.view(embedding.weight.shape[0], -1))
    nn.init.zeros_(embedding.bias)
    for block in denoiser.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    for layer in (denoiser.proj_out_1, denoiser.proj_out_2):
        nn.init.zeros_(layer.weight)


@dataclass(frozen=True)
class LatentBatch:
    """Latents [B, c, h, w] float32 on the CPU, and their labels [B] int64, 0 where the data has none."""

    latents: Tensor
    labels: Tensor


def logit_normal_times(normal: Tensor) -> Tensor:
    """Returns times in (0, 1), the logistic function of standard normal numbers of any shape.

    Esser et al. 2024, section 3.1, with m = 0 and s = 1: most in the middle, where the prediction is hardest.
    """
    return torch.sigmoid(normal)


def noisy_latents(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Returns x_t = (1 − t) x + t ε, for latents and noise [B, c, h, w] and times [B]."""
    t = times[:, None, None, None]
    return (1 - t) * latents + t * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Returns dx_t / dt = ε − x [B, c, h, w], the target of the denoiser."""
    return noise - latents


def independent_loss(variance: Tensor, times: Tensor) -> Tensor:
    """Returns the smallest mean squared error [B] of the velocity if all latent values were independent.

    For a normal variable x with variance s², Var(ε − x | x_t) = s² / ((1 − t)² s² + t²), averaged over the
    channels. A denoiser's loss divided by this shows how much it has learned of the dependencies between
    latents; 1 is nothing. Unlike the loss itself, the ratio does not change with the latents' scale.

    Args:
        variance: [c] of each channel of the latents.
        times: [B] in (0, 1].
    """
    t = times[:, None]
    return (variance / ((1 - t).square() * variance + t.square())).mean(dim=1)


@dataclass(frozen=True)
class FlowLoss:
    """A denoiser's loss.

    Attributes:
        loss: mean squared error of the velocity, per value of the latents. It grows with the noise and fine
            detail in the latents, and cannot be compared between latent spaces.
        relative_loss: the loss divided by ``independent_loss``; 1 means that nothing was learned.
    """

    loss: float
    relative_loss: float


class FlowValidation:
    """Measures denoisers on held-out latents, each at several times where there are few.

    Noise and times are the same at every measurement, and for every model.

    Args:
        held_out: the latents.
        variance: [c] of the training latents' channels.
        seed: of noise and times.
        batch_size: latents at a time.

    Raises:
        ValueError: no latents.
    """

    def __init__(self, held_out: LatentBatch, variance: Tensor, seed: int, batch_size: int = 64) -> None:
        count = len(held_out.latents)
        if not count:
            raise ValueError("there are no held-out images to measure the denoiser on")
        self.held_out = held_out
        self.variance = variance
        self.seed = seed
        self.batch_size = batch_size
        draws = count * -(-_FEWEST_DRAWS // count)
        self.images = torch.arange(draws) % count
        self.times = spread_times(draws, seed)

    @torch.no_grad()
    def __call__(self, denoiser: DiTTransformer2DModel) -> FlowLoss:
        """Measures the loss of a denoiser in its present mode (train or eval)."""
        device = next(denoiser.parameters()).device
        error, independent = 0.0, 0.0
        for start in range(0, len(self.images), self.batch_size):
            chosen = self.images[start : start + self.batch_size]
            times = self.times[start : start + self.batch_size]
            latents = self.held_out.latents[chosen]
            draws = torch_generator(self.seed, HELD_OUT_NOISE, start)
            noise = torch.randn(latents.shape, generator=draws)
            predicted = denoiser(
                noisy_latents(latents, noise, times).to(device),
                timestep=(times * NUM_TRAIN_TIMESTEPS).to(device),
                class_labels=self.held_out.labels[chosen].to(device),
            ).sample
            squares = (predicted.cpu() - velocity(latents, noise)).square().double()
            error += squares.mean(dim=(1, 2, 3)).sum().item()
            independent += independent_loss(self.variance, times).double().sum().item()
        return FlowLoss(error / len(self.images), error / independent)


def spread_times(count: int, seed: int) -> Tensor:
    """Returns [count] times at evenly spaced quantiles of the training's times, in random order."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=torch_generator(seed, HELD_OUT_TIMES))
    return logit_normal_times(torch.special.ndtri(quantiles))[order].float()
