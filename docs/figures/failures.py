"""Four failures, each above what it should look like.

Posterior collapse, a checkerboard, a discriminator that blows up, and float16 that overflows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from drawing import Drawing, draw, main, new_figure, show_images
from kl_weight import measure
from photographs import open_photographs
from runs import STEPS, train
from torch import Tensor, nn

from latentae import load_autoencoder
from latentae.evaluation.metrics import psnr
from latentae.models.precision import convert, decoder_input, encode

_SHOWN = (2, 6, 18, 27)
_COLLAPSED, _HEALTHY = 10.0, 0.2
_SCALE = 2.0**14
_LOW, _CHANNELS = 4, 24


def inflate(model: Any, factor: float) -> None:
    """Multiplies a decoder's residual stream by a factor, in place. Its images stay the same.

    Each normalisation divides the factor out again. SDXL's decoder is like this by its training.
    """
    stream = [model.decoder.conv_in]
    biases = []
    for block in (model.decoder.mid_block, *model.decoder.up_blocks):
        for resnet in block.resnets:
            stream.append(resnet.conv2)
            biases += [] if resnet.conv_shortcut is None else [resnet.conv_shortcut]
        stream += [attention.to_out[0] for attention in getattr(block, "attentions", None) or ()]
        biases += [upsampler.conv for upsampler in getattr(block, "upsamplers", None) or ()]
    with torch.no_grad():
        for layer in stream:
            layer.weight.mul_(factor)
        for layer in (*stream, *biases):
            layer.bias.mul_(factor)


def transposed_decoder(channels: int) -> nn.Sequential:
    """Returns two transposed convolutions of stride 2 with kernels of 3, which overlap unevenly."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, channels, 3, stride=2, padding=1, output_padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(channels, 3, 3, stride=2, padding=1, output_padding=1),
    )


def upsampling_decoder(channels: int) -> nn.Sequential:
    """Returns the same with nearest upsampling before each convolution, as latentae's decoders have it."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(3, channels, 3, padding=1),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(channels, 3, 3, padding=1),
    )


def train_decoder(decoder: nn.Module, images: Tensor, steps: int) -> nn.Module:
    """Trains a decoder to undo a downscaling by 4, in place."""
    low = F.avg_pool2d(images, _LOW)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (decoder(low) - images).square().mean().backward()
        optimizer.step()
    return decoder


@torch.no_grad()
def ripple(decoder: nn.Module) -> float:
    """Returns the deviation within the middle of what a decoder makes of a grey input; 0 is flat."""
    flat = decoder(torch.zeros(1, 3, 12, 12))[..., 16:32, 16:32]
    return flat.std(dim=(2, 3)).mean().item()


@torch.no_grad()
def decode_in_float16(model: Any, images: Tensor) -> Tensor:
    """Returns the reconstructions [B, 3, H, W] of a copy of the model in float16, as float32."""
    half = convert(model, torch.float16)
    codes = decoder_input(half, encode(half, images.half()))
    return half._decode_whole(codes).float()


@dataclass(frozen=True, eq=False)
class Failure:
    """Images [4, C, H, W] of a failure and of what they should be, and numbers of both."""

    broken: Tensor
    healthy: Tensor
    numbers: dict[str, float]


def collapse(seed: int, steps: int) -> Failure:
    """Trains VAEs of digits with a KL weight above the data's largest variance, and with a useful one."""
    collapsed, healthy = (measure(seed, steps, weight) for weight in (_COLLAPSED, _HEALTHY))
    numbers = {"collapsed_kl": collapsed.kl.sum().item(), "healthy_kl": healthy.kl.sum().item()}
    return Failure(collapsed.reconstructions[:4], healthy.reconstructions[:4], numbers)


def checkerboard(seed: int, steps: int, images: Tensor) -> Failure:
    """Trains a decoder with transposed convolutions, and one that upsamples before it convolves."""
    found, numbers = [], {}
    for name, build in (("transposed", transposed_decoder), ("upsampling", upsampling_decoder)):
        torch.manual_seed(seed)
        decoder = train_decoder(build(_CHANNELS), images, steps)
        numbers[f"{name}_ripple"] = ripple(decoder)
        with torch.no_grad():
            found.append(decoder(F.avg_pool2d(images[list(_SHOWN)], _LOW)))
    return Failure(found[0], found[1], numbers)


@torch.no_grad()
def blown_up(models: dict[str, Any], images: Tensor) -> Failure:
    """Compares a discriminator of far too much weight from the first step with that of the guide."""
    found = {name: model(images).sample.clamp(-1, 1) for name, model in models.items()}
    numbers = {f"{name}_psnr": psnr(images_of, images).mean().item() for name, images_of in found.items()}
    broken, healthy = (images_of[list(_SHOWN)] for images_of in found.values())
    return Failure(broken, healthy, numbers)


def overflow(model: Any, images: Tensor, scale: float) -> Failure:
    """Decodes in float16 with activations beyond its range, and after ``make_half_safe``."""
    large = copy.deepcopy(model)
    inflate(large, scale)
    broken = decode_in_float16(large, images)
    report = large.make_half_safe(images)
    numbers = {
        "not_finite_share": 1 - broken.isfinite().float().mean().item(),
        "largest_activation": max(layer.before for layer in report.layers),
        "error_when_half_safe": report.float16_after.images,
    }
    black = broken.nan_to_num(-1, -1, -1)  # as a viewer shows NaN
    return Failure(black, decode_in_float16(large, images), numbers)


@draw
def make(
    seed: int = 0,
    *,
    runs: Path,
    steps: int = STEPS,
    digit_steps: int = 1000,
    decoder_steps: int = 100,
    scale: float = _SCALE,
    changes: Sequence[str] = (),
) -> Drawing:
    """Draws the failures in the first row and the healthy results in the second."""
    images = open_photographs()
    models = {
        name: load_autoencoder(train(runs, name, seed, steps, changes) / "model").eval()
        for name in ("blown_up", "vqgan")
    }
    failures = {
        "posterior collapse": collapse(seed, digit_steps),
        "checkerboard": checkerboard(seed, decoder_steps, images),
        "blown-up GAN": blown_up(models, images),
        "float16 overflow": overflow(models["vqgan"], images[list(_SHOWN)], scale),
    }
    figure = new_figure(9.2, 4.9)
    axes = figure.subplots(2, 4)
    numbers: dict[str, float] = {}
    for column, (title, failure) in enumerate(failures.items()):
        show_images(axes[0, column], failure.broken.clamp(-1, 1), 2, title)
        show_images(axes[1, column], failure.healthy.clamp(-1, 1), 2, "as it should be")
        numbers |= failure.numbers
    return Drawing(figure, numbers)


if __name__ == "__main__":
    main(__doc__, {"failures": make}, with_runs=True)
