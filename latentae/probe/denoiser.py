"""The denoiser: diffusers' DiT (Peebles and Xie 2023, arXiv 2212.09748), of the same size for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

NULL_LABEL = 1000
"""The label for "no class". ``DiTPipeline`` always uses this one, however many classes there are."""

_HEAD_CHANNELS = 32
_LABEL_STD = 0.5


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
