"""Decoders that are not their encoder's mirror: narrower, shallower, or of larger images.

A decoder that upscales computes k² pixels per position in its last convolution, and a pixel shuffle (Shi et
al. 2016, arXiv 1609.05158) puts them side by side. Its images are k times as large as those that the encoder
sees, which ``downscale`` makes of the originals wherever both are compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor

UPSCALES = (1, 2, 4)
"""How many times as large as the encoder's images those of a decoder can be, along each side."""
_ARGUMENTS = ("decoder_block_out_channels", "decoder_layers_per_block", "upscale")


@dataclass(frozen=True)
class DecoderShape:
    """Describes how a decoder differs from its encoder's mirror.

    Attributes:
        widths: channels of each level, the image's resolution first.
        layers_per_block: residual blocks per level, less one, which the decoder has in addition.
        upscale: how many times as large as the encoder's images the decoder's are, along each side.
    """

    widths: tuple[int, ...]
    layers_per_block: int
    upscale: int = 1

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Returns the shape of the decoder that a KL-VAE's config describes."""
        return cls(
            tuple(config.get("decoder_block_out_channels") or config["block_out_channels"]),
            config.get("decoder_layers_per_block") or config["layers_per_block"],
            config.get("upscale", 1),
        )

    @classmethod
    def of_stock(cls, config: Any, stock_class: type) -> DecoderShape:
        """Returns the shape that a class of diffusers builds from a config, of which it knows some keys.

        AutoencoderKL has the encoder's mirror. AutoencoderKLFlux2 knows other widths.
        """
        known = inspect.signature(stock_class).parameters
        return cls.of({name: value for name, value in config.items() if name in known})

    def __str__(self) -> str:
        return f"widths {list(self.widths)}, layers_per_block {self.layers_per_block}, upscale {self.upscale}"


class UpscalingDecoder(Decoder):
    """diffusers' decoder, followed by a pixel shuffle.

    Args:
        upscale: of the shuffle, k. ``conv_out`` has k² times the channels of the images.
        out_channels: channels of the images.
        arguments: the other ones of ``Decoder``.
    """

    def __init__(self, upscale: int, *, out_channels: int, **arguments: Any) -> None:
        super().__init__(out_channels=out_channels * upscale**2, **arguments)
        self.upscale = upscale

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        """Decodes latents [B, c, h, w] to images [B, C, k · f · h, k · f · w]."""
        return F.pixel_shuffle(super().forward(sample, latent_embeds), self.upscale)


def build_decoder(config: Any, shape: DecoderShape) -> Decoder:
    """Builds a decoder with fresh weights.

    Args:
        config: of the KL-VAE that it is for.
        shape: of the decoder.

    Raises:
        ValueError: another number of widths than the encoder has levels, widths that ``norm_num_groups`` does
            not divide, or another upscale than 1, 2 and 4.
    """
    levels, groups = len(config["block_out_channels"]), config["norm_num_groups"]
    if len(shape.widths) != levels:
        raise ValueError(
            f"decoder_block_out_channels is {list(shape.widths)}, but must have a width for each of the "
            f"{levels} levels of block_out_channels"
        )
    if offending := [width for width in shape.widths if width < 1 or width % groups]:
        raise ValueError(
            f"decoder_block_out_channels is {list(shape.widths)}, but norm_num_groups, {groups}, does not "
            f"divide {offending[0]}"
        )
    if shape.layers_per_block < 1:
        raise ValueError(f"decoder_layers_per_block is {shape.layers_per_block}, but must be 1 or more")
    if shape.upscale not in UPSCALES:
        raise ValueError(f"upscale is {shape.upscale!r}, but must be one of {', '.join(map(str, UPSCALES))}")
    arguments: dict[str, Any] = {
        "in_channels": config["latent_channels"],
        "out_channels": config["out_channels"],
        "up_block_types": config["up_block_types"],
        "block_out_channels": shape.widths,
        "layers_per_block": shape.layers_per_block,
        "norm_num_groups": groups,
        "act_fn": config["act_fn"],
        "mid_block_add_attention": config["mid_block_add_attention"],
    }
    return Decoder(**arguments) if shape.upscale == 1 else UpscalingDecoder(shape.upscale, **arguments)


def replace_decoder(model: Any) -> None:
    """Gives a KL-VAE under construction the decoder in its config, if its stock class builds another one.

    Arguments that the stock class does not know and that change nothing are removed from its config, which
    then is what it would be without them.

    Raises:
        ValueError: as ``build_decoder``.
    """
    config = model.config
    shape, stock = DecoderShape.of(config), DecoderShape.of_stock(config, model._stock_class)
    pairs = zip(_ARGUMENTS, vars(shape).values(), vars(stock).values(), strict=True)
    known = inspect.signature(model._stock_class).parameters
    idle = [name for name, own, usual in pairs if own == usual and name not in known]
    values = {name: value for name, value in config.items() if name not in idle}
    values["_use_default_values"] = [
        name for name in config.get("_use_default_values", []) if name not in idle
    ]
    model._internal_dict = FrozenDict(values)
    if shape != stock:
        model.decoder = build_decoder(config, shape)


def decoder_objection(config: Any, stock_class: type) -> str | None:
    """Returns why a class of diffusers cannot hold a KL-VAE's decoder, as a clause; None if it can."""
    shape, stock = DecoderShape.of(config), DecoderShape.of_stock(config, stock_class)
    if shape == stock:
        return None
    problem = "a decoder that is not the encoder's mirror"
    if shape.widths == stock.widths:
        problem = "a decoder of another depth than the encoder"
    if shape.upscale > 1:
        problem = f"a decoder whose images are {shape.upscale} times as large as the encoder's"
    return f"diffusers' {stock_class.__name__} cannot hold {problem} ({shape})"


# Images of two sizes


def downscale(images: Tensor, factor: int, *, alpha: bool = False) -> Tensor:
    """Makes images [B, C, H, W] ``factor`` times smaller: every pixel becomes the mean of factor × factor.

    That is an antialiased area filter; values stay in the range of the images. Sides that are no multiple of
    the factor are first padded by repeating the right and bottom edge. A factor of 1 returns the images.

    Args:
        alpha: whether images are RGBA: see ``average_by_alpha``.

    Raises:
        ValueError: they are RGBA, but have not four channels.
    """
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        images = F.pad(images, (0, -width % factor, 0, -height % factor), mode="replicate")
    average = partial(F.avg_pool2d, kernel_size=factor)
    return average_by_alpha(images, average) if alpha else average(images)


def average_by_alpha(images: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Makes RGBA images smaller by means of their pixels, in which colours are weighted by alpha.

    So colours under transparent pixels do not bleed into visible ones. Pixels of which nothing is visible
    become black, as where files are resized.

    Args:
        images: [B, 4, H, W] in [−1, 1] with straight alpha, which is clamped to its range as a weight.
        average: makes images [B, c, H, W] smaller by means of their pixels.

    Raises:
        ValueError: the images have not four channels.
    """
    if images.shape[1] != 4:
        raise ValueError(f"images have shape {list(images.shape)}: give RGBA images [B, 4, H, W]")
    colours, alpha = images[:, :3], images[:, 3:]
    weights = ((alpha + 1) / 2).clamp(0, 1)
    visible = average(weights)
    means = average(weights * colours) / torch.where(visible > 0, visible, 1)
    return torch.cat([torch.where(visible > 0, means, -1), average(alpha)], dim=1)


def upscale_of(model: Any) -> int:
    """Returns how many times as large as its encoder's images a model's reconstructions are."""
    return int(getattr(model, "upscale", 1))


def reconstruct(model: Any, images: Tensor, *, alpha: bool = False, **arguments: Any) -> Any:
    """Reconstructs images at their own size, whatever the model: the encoder of one that upscales sees less.

    Args:
        model: called with the images, or for a model that upscales with what ``downscale`` makes of them.
        images: [B, C, H, W] in [−1, 1], the originals.
        alpha: whether they are RGBA: see ``downscale``.
        arguments: of the model.

    Returns:
        the model's output, with a ``sample`` [B, C, H, W].
    """
    factor = upscale_of(model)
    output = model(downscale(images, factor, alpha=alpha), **arguments)
    if factor > 1:
        output.sample = _cropped(output.sample, images.shape[-2:])
    return output


def _cropped(images: Tensor, size: Sequence[int]) -> Tensor:
    return images[..., : size[0], : size[1]]
