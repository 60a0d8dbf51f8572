"""Compares models whose activations leave float16's range before and after ``make_half_safe``.

Draws random weights for four kinds of model. Multiplies the branches of each decoder so that its residual
stream grows from level to level, to about 5e5 as that of SDXL's VAE. Encodes and decodes crops of the
built-in photographs in float32, bfloat16 and float16. Errors are the largest differences from float64's
images, decoded from the same latents; ranges are those of float64's images.
"""

from __future__ import annotations

from typing import Any

import torch
from measuring import benchmark_parser, default_device, describe_run, print_head, print_row
from torch import Tensor

from latentae import KLVAE, VQGAN, VQVAE, Flux2VAE
from latentae.data import CenterCrop, ImageDataset, take_evenly, validation_photos
from latentae.models.precision import Reference

_STREAM = 5e5
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = benchmark_parser(__doc__, threads=1)
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=2, help="number of images")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    photos = take_evenly(validation_photos(), arguments.images)
    dataset = ImageDataset(photos, CenterCrop(arguments.size), channels=3)
    images = torch.stack([dataset[0, index]["images"] for index in range(len(dataset))]).to(device)
    print(f"{describe_run(device)} {len(images)} images of {arguments.size} pixels.\n")
    print_head(
        *("model", "precision", "not finite before", "after", "error before", "after", "range of images"),
        *("largest activation before", "after"),
    )
    for name, model in _models():
        _grow(model)
        _compare(name, model.to(device), images)


def _models() -> Any:
    """Yields a name and a model with random weights, one at a time."""

    def levels(*widths: int, attention: int = 0) -> dict[str, Any]:
        """Returns the arguments for levels of these widths, the last ones with attention."""
        plain, attentive = len(widths) - attention, attention
        down = ("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",) * attentive
        up = ("AttnUpDecoderBlock2D",) * attentive + ("UpDecoderBlock2D",) * plain
        return {"block_out_channels": widths, "down_block_types": down, "up_block_types": up}

    torch.manual_seed(0)
    yield "KL-VAE f8, SDXL's size", KLVAE(**levels(128, 256, 512, 512), layers_per_block=2)
    yield "Flux2VAE f8", Flux2VAE()
    codes = {"num_vq_embeddings": 1024, "latent_channels": 4}
    yield "VQ-VAE f4", VQVAE(**levels(128, 256, 512), layers_per_block=2, **codes)
    yield "VQGAN f16, attention", VQGAN(**levels(64, 64, 128, 256, 256, attention=1), **codes)


@torch.no_grad()
def _grow(model: Any) -> None:
    """Multiplies what the decoder's layers write into the stream, more from block to block."""
    blocks = [model.decoder.mid_block, *model.decoder.up_blocks]
    for part in (model.decoder.conv_in.weight, model.decoder.conv_in.bias):
        part.mul_(10)
    for number, block in enumerate(blocks):
        # Branches with random weights write values up to about 4.
        factor = 10 * (_STREAM / 40) ** (number / (len(blocks) - 1))
        for resnet in block.resnets:
            resnet.conv2.weight.mul_(factor)
            resnet.conv2.bias.mul_(factor)


def _compare(name: str, model: Any, images: Tensor) -> None:
    """Prints a row for each precision."""
    reference = Reference.of(model.eval(), images)
    before = {key: reference.compare(model, dtype) for key, dtype in _DTYPES.items()}
    report = model.make_half_safe(images)
    pixels = torch.cat([part.flatten() for part in reference.pixels])
    for key, dtype in _DTYPES.items():
        after = reference.compare(model, dtype)
        print_row(
            *(name, key, f"{before[key].not_finite:.0%}", f"{after.not_finite:.0%}"),
            *(f"{before[key].images:.1e}", f"{after.images:.1e}"),
            f"{(pixels.max() - pixels.min()).item():.2f}",
            f"{max(layer.before for layer in report.layers):.1e}",
            f"{max(layer.after for layer in report.layers):.1e}",
        )


if __name__ == "__main__":
    main()
