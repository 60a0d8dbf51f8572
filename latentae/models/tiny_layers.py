"""The layers of TAESD (madebyollin), described one by one in words or together by the levels they form.

An encoder is a first convolution, levels of residual blocks that are joined by strided convolutions, and a
last convolution. A decoder is the reverse: nearest-neighbour enlargement and a convolution join its levels.
The level at the image's resolution has one block. Two things differ among editions. For FLUX.2 the blocks at
the latents' resolution have a pooled branch. At a factor of 16 the encoder first folds 2×2 pixels into
channels (pixel unshuffle), and the decoder ends with the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

POOL_GROUPS = 4
"""Groups of the normalisation in a pooled block's branch."""


class TinyBlock(AutoencoderTinyBlock):
    """TAESD's residual block: three 3×3 convolutions with ReLU between them.

    Args:
        in_channels, out_channels: if they differ, the skip connection has a 1×1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, "relu")


class PooledBlock(TinyBlock):
    """The block of TAESD for FLUX.2, which adds a branch with group normalisation to its input: x + pool(x).

    Args:
        in_channels, out_channels: as in ``TinyBlock``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        hidden = 4 * in_channels
        self.pool = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.GroupNorm(POOL_GROUPS, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, in_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, in_channels, h, w] to [B, out_channels, h, w]."""
        return super().forward(x + self.pool(x))


def _conv(**arguments: Any) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, **arguments)


# First word of a layer's description -> what builds it from the numbers that follow.
_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv": _conv(),
    "conv_without_bias": _conv(bias=False),
    "strided_conv": _conv(stride=2),
    "strided_conv_without_bias": _conv(stride=2, bias=False),
    "block": TinyBlock,
    "pooled_block": PooledBlock,
    "relu": nn.ReLU,
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "pixel_unshuffle": lambda: nn.PixelUnshuffle(2),
    "pixel_shuffle": lambda factor=2: nn.PixelShuffle(factor),
}


def build_layers(descriptions: Sequence[str]) -> nn.Sequential:
    """Builds an encoder or decoder of layers such as ``["conv 3 64", "block 64 64", "upsample"]``.

    Raises:
        ValueError: an unknown layer, or the wrong numbers for one.
    """
    layers = []
    for description in descriptions:
        kind, *numbers = description.split()
        try:
            layers.append(_LAYERS[kind](*map(int, numbers)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{description!r} is not a layer of TinyAutoencoder: it must be one of {', '.join(_LAYERS)}; "
                "a convolution or block is followed by its input and output channels, and pixel_shuffle may "
                "be followed by its factor"
            ) from error
    return nn.Sequential(*layers)


def shuffle_of(layers: Sequence[str]) -> int:
    """Returns the factor of the pixel shuffle that a decoder ends with; 1 without one."""
    kind, *numbers = layers[-1].split()
    return int(numbers[0] if numbers else 2) if kind == "pixel_shuffle" else 1


def channels_of(layers: Sequence[str]) -> list[int]:
    """Returns all numbers of channels, from the input to the output."""
    kinds = [layer.split() for layer in layers]
    return [int(number) for kind, *numbers in kinds if kind != "pixel_shuffle" for number in numbers]


def count_doublings(layers: Sequence[str], *kinds: str) -> int:
    """Counts the layers that change the resolution by two."""
    return sum(layer.startswith(kinds) for layer in layers)


# --- layers by the levels they form ---


@dataclass(frozen=True)
class TinyLevels:
    """The levels of an encoder or of a decoder.

    Attributes:
        widths: channels of each level, the image's resolution first.
        layers_per_block: residual blocks of each level; the one at the image's resolution has one.
        pooled: whether the blocks at the latents' resolution are pooled ones.
        folds: pixels along each side that the layers next to the image hold as channels. For a decoder that
            includes how many times as large as the encoder's its images are.
    """

    widths: tuple[int, ...]
    layers_per_block: int
    pooled: bool = False
    folds: int = 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of blocks of each level."""
        return (1,) + (self.layers_per_block,) * (len(self.widths) - 1)

    def encoder(self, in_channels: int, latent_channels: int) -> list[str]:
        """Describes the layers of an encoder with these levels."""
        first = self.widths[0]
        layers = [f"conv {in_channels} {first}"]
        if self.folds == 2:
            layers = ["pixel_unshuffle", f"conv {4 * in_channels} {first}", "relu"]
        before = None
        for level, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if before is not None:
                layers.append(f"strided_conv_without_bias {before} {width}")
            layers += [self._block(level, width)] * count
            before = width
        return [*layers, f"conv {self.widths[-1]} {latent_channels}"]

    def decoder(self, latent_channels: int, out_channels: int) -> list[str]:
        """Describes the layers of a decoder with these levels, after its clamp."""
        layers, before = [f"conv {latent_channels} {self.widths[-1]}", "relu"], None
        for level in reversed(range(len(self.widths))):
            width = self.widths[level]
            if before is not None:
                layers += ["upsample", f"conv_without_bias {before} {width}"]
            layers += [self._block(level, width)] * self.blocks[level]
            before = width
        layers.append(f"conv {self.widths[0]} {out_channels * self.folds**2}")
        return [*layers, *_shuffle(self.folds)]

    def _block(self, level: int, width: int) -> str:
        kind = "pooled_block" if self.pooled and level == len(self.widths) - 1 else "block"
        return f"{kind} {width} {width}"


def _shuffle(factor: int) -> list[str]:
    if factor == 1:
        return []
    return ["pixel_shuffle" if factor == 2 else f"pixel_shuffle {factor}"]


def levels_of_encoder(layers: Sequence[str]) -> TinyLevels:
    """Returns the levels that an encoder's layers form.

    Raises:
        ValueError: no levels describe these layers.
    """
    widths, blocks = find_levels(layers, "strided_conv_without_bias")
    levels = TinyLevels(widths, max(*blocks, 1), _are_pooled(layers), 2 if "pixel_unshuffle" in layers else 1)
    channels = channels_of(layers)
    _check(levels.encoder(channels[0] // levels.folds**2, channels[-1]), layers, "encoder")
    return levels


def levels_of_decoder(layers: Sequence[str]) -> TinyLevels:
    """Returns the levels that a decoder's layers form.

    Raises:
        ValueError: no levels describe these layers.
    """
    widths, blocks = find_levels(layers, "conv_without_bias")
    levels = TinyLevels(widths[::-1], max(*blocks, 1), _are_pooled(layers), shuffle_of(layers))
    channels = channels_of(layers)
    _check(levels.decoder(channels[0], channels[-1] // levels.folds**2), layers, "decoder")
    return levels


def _check(described: list[str], layers: Sequence[str], side: str) -> None:
    if described != list(layers):
        raise ValueError(
            f"its {side} is not made of levels with one block at the image's resolution and equally many at "
            "each other, and nothing else can be trained"
        )


def _are_pooled(layers: Sequence[str]) -> bool:
    return any(layer.startswith("pooled_block") for layer in layers)


def find_levels(layers: Sequence[str], change: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns width and number of blocks per level, in the layers' order.

    Args:
        change: the kind of layer that begins a new level.
    """
    widths, blocks = [channels_of(layers)[1]], [0]
    for layer in layers:
        kind, *channels = layer.split()
        if kind == change:
            widths.append(int(channels[1]))
            blocks.append(0)
        elif kind.endswith("block"):
            widths[-1] = int(channels[1])
            blocks[-1] += 1
    return tuple(widths), tuple(blocks)


# --- the arguments of a model with these layers ---


def arguments_of(encoder: list[str], decoder: list[str], upscale: int = 1) -> dict[str, Any]:
    """Returns the arguments of a TinyAutoencoder with these layers; the layers only if it needs them.

    Args:
        upscale: how many times as large as the encoder's images the decoder's are.
    """
    folds = 2 if "pixel_unshuffle" in encoder else 1
    widths, blocks = find_levels(encoder, "strided_conv_without_bias")
    up_widths, up_blocks = find_levels(decoder, "conv_without_bias")
    arguments: dict[str, Any] = {
        "in_channels": channels_of(encoder)[0] // folds**2,
        "out_channels": channels_of(decoder)[-1] // shuffle_of(decoder) ** 2,
        "latent_channels": channels_of(encoder)[-1],
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": up_widths,
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": up_blocks,
    }
    if stock_layers(arguments) == (encoder, decoder):
        return arguments
    layers = {"encoder_layers": encoder, "decoder_layers": decoder}
    return {**arguments, **layers, **({} if upscale == 1 else {"upscale": upscale})}


def stock_layers(arguments: Any) -> tuple[list[str], list[str]]:
    """Describes the layers that diffusers' AutoencoderTiny has with these arguments."""
    down: list[str] = []
    widths, blocks = arguments["encoder_block_out_channels"], arguments["num_encoder_blocks"]
    for width, count in zip(widths, blocks, strict=True):
        stem = f"conv {arguments['in_channels']} {width}"
        down.append(f"strided_conv_without_bias {width} {width}" if down else stem)
        down += [f"block {width} {width}"] * count
    down.append(f"conv {widths[-1]} {arguments['latent_channels']}")
    widths, blocks = arguments["decoder_block_out_channels"], arguments["num_decoder_blocks"]
    up = [f"conv {arguments['latent_channels']} {widths[0]}", "relu"]
    for width, count in zip(widths, blocks, strict=True):
        up += [f"block {width} {width}"] * count
        up += ["upsample", f"conv_without_bias {width} {width}"]
    return down, [*up[:-2], f"conv {widths[-1]} {arguments['out_channels']}"]


def layers_of(config: Any) -> tuple[list[str], list[str]]:
    """Describes the layers of the encoder and of the decoder that a TinyAutoencoder's config describes."""
    down, up = stock_layers(config)
    return list(config.get("encoder_layers") or down), list(config.get("decoder_layers") or up)
