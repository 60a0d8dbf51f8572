"""Networks small enough for float64 comparisons of whole training steps."""

from typing import Any

import torch
from torch import nn

from latentae.discriminators import PatchGAN
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.models import VQGAN


class FeatureDistance(nn.Module):
    """A frozen random network in the place of LPIPS: what matters here is that it has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Conv2d(8, 8, 3, 2)).requires_grad_(
            False
        )

    def forward(self, reconstruction, images):
        return (self.net(reconstruction) - self.net(images)).square().mean(dim=(1, 2, 3))


def tiny_vqgan(type: str = "vector", **quantizer: Any) -> VQGAN:
    return VQGAN(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        quantizer={"type": type, **quantizer},
    )


def small_networks(norm: str = "group") -> tuple[VQGAN, PatchGAN, ReconstructionObjective]:
    """Autoencoder, discriminator and objective, the same ones each time, in float64."""
    torch.manual_seed(0)
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5)
    discriminator = PatchGAN(3, base_channels=8, num_layers=1, norm=norm)
    # With weights of N(0, 0.02) gradients are as small as the 1e-4 in the adaptive weight and tell little.
    for parameter in discriminator.parameters():
        parameter.data.mul_(5)
    return tiny_vqgan().double(), discriminator.double(), objective.double()


def gradients(*modules):
    """Copies of all parameters' gradients, None where there is none."""
    return [None if p.grad is None else p.grad.clone() for module in modules for p in module.parameters()]


def assert_same_gradients(actual, expected):
    """Two lists of ``gradients`` are equal to 1e-10."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
