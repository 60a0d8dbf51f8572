"""TAESD in plain torch, written down from its published description, to hold ours to."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, **arguments):
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, **arguments)


class Clamp(nn.Module):
    def forward(self, latents):
        return 3 * torch.tanh(latents / 3)


class Block(nn.Module):
    """relu(conv(x) + x), after x + pool(x) in the blocks at the latents' resolution for FLUX.2."""

    def __init__(self, width, pooled=False):
        super().__init__()
        self.conv = nn.Sequential(
            conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def encoder(images=3, latents=4, widths=(8, 8, 8, 8), blocks=(1, 2, 2, 2), pooled=False, stem="plain"):
    """``stem``: ``plain``; ``strided``, as at a factor of 32; ``folded``, as at a factor of 16."""
    first = widths[0]
    if stem == "plain":
        layers = [conv(images, first)]
    elif stem == "strided":
        layers = [conv(images, first // 2, stride=2), nn.ReLU(), conv(first // 2, first, stride=2), nn.ReLU()]
    else:
        layers = [nn.PixelUnshuffle(2), conv(4 * images, first), nn.ReLU()]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level:
            layers.append(conv(widths[level - 1], width, stride=2, bias=False))
        layers += [Block(width, pooled and level == len(widths) - 1) for _ in range(count)]
    return nn.Sequential(*layers, conv(widths[-1], latents))


def decoder(images=3, latents=4, widths=(8, 8, 8, 8), blocks=(2, 2, 2, 1), pooled=False, stem="plain"):
    """Widths from the latents upwards."""
    layers = [Clamp(), conv(latents, widths[0]), nn.ReLU()]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level:
            layers += [nn.Upsample(scale_factor=2), conv(widths[level - 1], width, bias=False)]
        layers += [Block(width, pooled and level == 0) for _ in range(count)]
    if stem == "folded":
        return nn.Sequential(*layers, conv(widths[-1], 4 * images), nn.PixelShuffle(2))
    return nn.Sequential(*layers, conv(widths[-1], images))


# What each edition differs in; "encoder" and "decoder" are arguments of one half alone.
EDITIONS = {
    "taesd": {},
    "taesd of FLUX.2": {"latents": 6, "pooled": True},
    "f32": {
        "latents": 5,
        "stem": "strided",
        "encoder": {"widths": (8, 8, 8, 8), "blocks": (1, 2, 2, 2)},
        "decoder": {"widths": (32, 16, 8, 8, 8, 8), "blocks": (2, 2, 2, 2, 2, 1)},
    },
    "f16": {
        "images": 4,
        "latents": 7,
        "stem": "folded",
        "encoder": {"widths": (8, 8, 16, 32), "blocks": (1, 2, 2, 2)},
        "decoder": {"widths": (32, 16, 8, 8), "blocks": (2, 2, 2, 1)},
    },
    "wide": {"encoder": {"widths": (12,) * 4}, "decoder": {"widths": (20,) * 4}},
    "deep": {
        "encoder": {"widths": (8,) * 5, "blocks": (1, 3, 0, 2, 4)},
        "decoder": {"widths": (8,) * 5, "blocks": (4, 2, 3, 0, 1)},
    },
    "grey": {"images": 1, "latents": 2},
}
FITS_STOCK = {"taesd", "wide", "deep", "grey"}


def build(edition):
    """(encoder, decoder) of an edition, with random weights that keep values of usual size."""
    torch.manual_seed(0)
    shared = {name: value for name, value in EDITIONS[edition].items() if name not in ("encoder", "decoder")}
    halves = []
    for side, make in (("encoder", encoder), ("decoder", decoder)):
        half = make(**shared, **EDITIONS[edition].get(side, {})).eval()
        for parameter in half.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        halves.append(half)
    return tuple(halves)


def expected(halves, images):
    """(latents, reconstruction) of images in [-1, 1]; TAESD's own are in [0, 1]."""
    with torch.no_grad():
        latents = halves[0]((images + 1) / 2)
        return latents, halves[1](latents) * 2 - 1


def in_layout(halves, layout, prefix=""):
    """The tensors of both halves under the names of a layout: ``class``, ``comfyui`` or ``diffusers``."""
    stored = {}
    for side, half in zip(("encoder", "decoder"), halves, strict=True):
        for name, tensor in half.state_dict().items():
            number, rest = name.split(".", 1)
            shifted = int(number) - (side == "decoder")  # diffusers does not count the clamp
            names = {
                "class": f"{side}.{name}",
                "comfyui": f"taesd_{side}.{name}",
                "diffusers": f"{side}.layers.{shifted}.{rest}",
            }
            stored[prefix + names[layout]] = tensor
    return stored
