"""Programs of diffusers' and our own modules: how each is processed in strips.

``steps`` translates a module into a program. Another type of module is added by ``steps.register``:

    @steps.register
    def _(module: MyUpsampler) -> Program:
        return [Layer(module, top=1, bottom=1, up=2)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SpatialNorm,
    XFormersAttnProcessor,
)
from diffusers.models.autoencoders.vae import Decoder, DecoderTiny, Encoder, EncoderTiny
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    AutoencoderTinyBlock,
    DownEncoderBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from latentae.models.backbone_2017 import Decoder2017, Encoder2017, ResidualStack
from latentae.models.decoders import UpscalingDecoder
from latentae.models.exact_tiling.maps import Layer
from latentae.models.exact_tiling.walk import Norm, Program, Residual, Whole

Translation = Callable[[Any], Program]


# --- programs of modules


@singledispatch
def steps(module: nn.Module) -> Program:
    """Returns the program of a module.

    Raises:
        ValueError: a type of module that is not registered.
    """
    if (inner := getattr(module, "_orig_mod", None)) is not None:  # torch.compile's wrapper
        return steps(inner)
    if isinstance(getattr(module, "base_layer", None), nn.Conv2d):  # an adapter of PEFT
        return [_convolution(module)]
    raise _unknown(module)


def program_of(modules: Sequence[nn.Module | None]) -> Program:
    """Returns the program of modules that follow each other; None is skipped.

    Raises:
        ValueError: as ``steps``.
    """
    return [step for module in modules if module is not None for step in steps(module)]


def _unknown(module: object, detail: str = "") -> ValueError:
    return ValueError(
        f"exact tiling cannot divide a {type(module).__name__}{detail}: use enable_tiling(mode='blended'), "
        "or register the module's program with latentae.models.exact_tiling.steps"
    )


def _register(*types: type[nn.Module]) -> Callable[[Translation], Translation]:
    """Registers types that are taken apart, so that hooks around them would not run."""

    def register(translation: Translation) -> Translation:
        def checked(module: Any) -> Program:
            others = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
            if module._forward_hooks or module._forward_pre_hooks or others:
                raise _unknown(module, " with hooks around it")
            return translation(module)

        for each in types:
            steps.register(each, checked)
        return translation

    return register


@steps.register(nn.SiLU)
@steps.register(nn.ReLU)
@steps.register(nn.GELU)
@steps.register(nn.Mish)
@steps.register(nn.Tanh)
def _(module: nn.Module) -> Program:
    if getattr(module, "inplace", False):
        raise _unknown(module, " that overwrites its input")
    return [Layer(module)]


@steps.register
def _(module: nn.Identity) -> Program:
    return []


@steps.register
def _(module: nn.Dropout) -> Program:
    if module.training and module.p > 0:
        raise _unknown(module, " in training mode")
    return []


@steps.register(nn.GroupNorm)
@steps.register(SpatialNorm)
def _(module: nn.Module) -> Program:
    return [Norm(module)]


@steps.register
def _(attention: Attention) -> Program:
    processor: Any = attention.processor
    if type(processor) is AttnProcessor:  # which would write out all scores
        processor = AttnProcessor2_0()
    elif isinstance(processor, AttnProcessor2_0 | FusedAttnProcessor2_0 | XFormersAttnProcessor):
        processor = None
    else:
        raise _unknown(processor)

    def attend(inputs: Tensor, condition: Tensor) -> Tensor:
        temb = None if attention.spatial_norm is None else condition
        outputs: Tensor = (
            attention(inputs, temb=temb) if processor is None else processor(attention, inputs, temb=temb)
        )
        return outputs

    return [Whole(attend)]


# --- convolutions and changes of resolution


@steps.register
def _(module: nn.Conv2d) -> Program:
    return [_convolution(module)]


def _convolution(
    module: nn.Module, conv: nn.Conv2d | None = None, padding: tuple[int, int] | None = None
) -> Layer:
    """Returns the layer of a module around a convolution.

    Args:
        conv: the convolution; None: the module itself, or what it adapts.
        padding: rows above and below; None: those of the convolution.
    """
    inner: Any = conv or module
    conv = getattr(inner, "base_layer", inner)
    assert isinstance(conv, nn.Conv2d)
    if conv.padding_mode not in ("zeros", "replicate") or isinstance(conv.padding, str):
        raise _unknown(conv, f" with padding {conv.padding!r} and padding_mode {conv.padding_mode!r}")
    if any(len(set(pair)) > 1 for pair in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)):
        raise _unknown(conv, " whose kernel, stride, padding or dilation differs between height and width")
    span, stride = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1, conv.stride[0]
    above, below = padding or (conv.padding[0], conv.padding[0])
    return Layer(
        module,
        channels=_constant(conv.out_channels),
        top=above,
        bottom=max(0, span - stride - above),
        down=stride,
        extra=above + below - span + stride,
    )


def _constant(channels: int) -> Callable[[int], int]:
    return lambda _: channels


@steps.register
def _(module: nn.ConvTranspose2d) -> Program:
    geometry = (module.kernel_size, module.stride, module.padding, module.output_padding, module.dilation)
    if geometry != ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1)):
        raise _unknown(module, " of another kernel than 4, stride than 2 or padding than 1")
    return [Layer(module, channels=_constant(module.out_channels), top=1, bottom=1, up=2)]


@steps.register
def _(module: Upsample2D) -> Program:
    if module.norm is not None or module.use_conv_transpose or not module.interpolate:
        raise _unknown(module, " that is not of nearest neighbours")
    if not module.use_conv:
        return [Layer(module, up=2)]
    layer = _convolution(module, module.conv if module.name == "conv" else module.Conv2d_0)
    if (layer.down, layer.extra) != (1, 0):
        raise _unknown(module, " whose convolution changes the size")
    # The halo is counted in rows of the input, half as many.
    return [
        Layer(module, channels=layer.channels, top=-(-layer.top // 2), bottom=-(-layer.bottom // 2), up=2)
    ]


@steps.register
def _(module: Downsample2D) -> Program:
    if module.norm is not None:
        raise _unknown(module, " with a normalisation")
    if not module.use_conv:
        return [Layer(module, down=2)]
    return [_convolution(module, module.conv, (0, 1) if module.padding == 0 else None)]


@steps.register
def _(module: nn.Upsample) -> Program:
    factor = module.scale_factor
    if module.mode != "nearest" or not isinstance(factor, int | float) or factor != int(factor):
        raise _unknown(module, " that does not repeat pixels a whole number of times")
    return [Layer(module, up=int(factor))]


@steps.register
def _(module: nn.PixelShuffle) -> Program:
    return [_pixel_shuffle(module, module.upscale_factor)]


def _pixel_shuffle(function: Callable[[Tensor], Tensor], factor: int) -> Layer:
    return Layer(function, channels=lambda channels: channels // factor**2, up=factor)


@steps.register
def _(module: nn.PixelUnshuffle) -> Program:
    factor = module.downscale_factor
    return [Layer(module, channels=lambda channels: channels * factor**2, down=factor)]


# --- blocks, encoders and decoders


@_register(nn.Sequential)
def _(module: nn.Sequential) -> Program:
    return program_of(list(module))


@_register(ResnetBlock2D, ResnetBlockCondNorm2D)
def _(block: Any) -> Program:
    if block.upsample or block.downsample or getattr(block, "time_emb_proj", None):
        raise _unknown(block, " with a time embedding or another resolution")
    first = [block.norm1, block.nonlinearity, block.conv1]
    second = [block.norm2, block.nonlinearity, block.dropout, block.conv2]
    scale = block.output_scale_factor
    after: list[Any] = [] if scale == 1 else [Layer(lambda x: x / scale)]
    return [Residual(program_of(first + second), program_of([block.conv_shortcut])), *after]


@_register(UNetMidBlock2D)
def _(block: Any) -> Program:
    first, *others = block.resnets
    pairs = zip(block.attentions, others, strict=True)
    return program_of([first, *chain.from_iterable(pairs)])


@_register(DownEncoderBlock2D, UpDecoderBlock2D, AttnDownEncoderBlock2D, AttnUpDecoderBlock2D)
def _(block: Any) -> Program:
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    pairs = zip(block.resnets, attentions, strict=True)
    samplers = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()
    return program_of([*chain.from_iterable(pairs), *samplers])


@_register(Encoder)
def _(encoder: Any) -> Program:
    last = [encoder.conv_norm_out, encoder.conv_act, encoder.conv_out]
    return program_of([encoder.conv_in, *encoder.down_blocks, encoder.mid_block, *last])


@_register(Decoder)
def _decoder(decoder: Any) -> Program:
    last = [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    return program_of([decoder.conv_in, decoder.mid_block, *decoder.up_blocks, *last])


@_register(UpscalingDecoder)
def _(decoder: Any) -> Program:
    shuffle = partial(F.pixel_shuffle, upscale_factor=decoder.upscale)
    return [*_decoder(decoder), _pixel_shuffle(shuffle, decoder.upscale)]


@_register(AutoencoderTinyBlock)
def tiny_block(block: Any) -> Program:
    """Returns the program of TAESD's residual block."""
    return [Residual(program_of([block.conv]), program_of([block.skip])), Layer(block.fuse)]


@_register(EncoderTiny)
def _(encoder: Any) -> Program:
    return [Layer(lambda images: images.add(1).div(2)), *steps(encoder.layers)]


@_register(DecoderTiny)
def _(decoder: Any) -> Program:
    clamp, scale = Layer(lambda latents: torch.tanh(latents / 3) * 3), Layer(lambda x: x.mul(2).sub(1))
    return [clamp, *steps(decoder.layers), scale]


@_register(ResidualStack)
def _(stack: Any) -> Program:
    blocks: Program = [Residual(steps(block)) for block in stack.blocks]
    return [*blocks, Layer(F.relu)]


@_register(Encoder2017)
def _(encoder: Any) -> Program:
    return program_of([encoder.down, encoder.stack, encoder.conv_out])


@_register(Decoder2017)
def _(decoder: Any) -> Program:
    return program_of([decoder.conv_in, decoder.stack, decoder.up, decoder.conv_out])
