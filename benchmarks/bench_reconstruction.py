"""Measures public autoencoders and your own on one data set, and shows published numbers next to them.

Writes a report and prints a table. A MODEL is a name of the list below, or what `latentae evaluate` takes;
without any, all of the list are measured. Models that cannot be opened (no connection, a licence that was not
accepted) are left out with a message. Under torchrun or `accelerate launch` several devices share the work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from diffusers.configuration_utils import FrozenDict
from measuring import benchmark_parser
from torch import Tensor, nn

from latentae import distributed
from latentae.evaluation.evaluate import Request, evaluate
from latentae.evaluation.measuring import Settings
from latentae.evaluation.models import name_models
from latentae.models import AutoencoderOutput, load_autoencoder
from latentae.report.results import Results, number
from latentae.report.tables import caveats, render_markdown

_IMAGENET = "ImageNet validation, 50,000 images at 256"
_COCO = "COCO 2017 validation, 5,000 images at 256"
_SHOWN = ("rfid", "psnr", "ssim", "lpips_alex", "lpips_vgg", "lpips")


@dataclass(frozen=True)
class Published:
    """Numbers that others measured.

    Attributes:
        numbers: metric to value; ``lpips`` if the network is not stated.
        data: the data set.
        remark: known differences from how this script measures.
    """

    numbers: dict[str, float]
    data: str
    remark: str


@dataclass(frozen=True)
class Public:
    """A model on the hub and the numbers published for it."""

    path: str
    published: Sequence[Published] = field(default_factory=tuple)


_UNSTATED = "crop, rounding and LPIPS network not stated"
_CARD = "model card, which calls its LPIPS PSIM; crop and rounding not stated"

PUBLIC = {
    "sd-vae-ft-mse": Public(
        "stabilityai/sd-vae-ft-mse",
        (
            Published({"rfid": 0.692, "psnr": 26.91, "ssim": 0.772, "lpips": 0.130}, _IMAGENET, _UNSTATED),
            Published({"rfid": 4.70, "psnr": 24.5, "ssim": 0.71, "lpips": 0.92}, _COCO, _CARD),
        ),
    ),
    "sdxl": Public(
        "stabilityai/sdxl-vae",
        (
            Published({"rfid": 0.665, "psnr": 27.38, "ssim": 0.794, "lpips": 0.122}, _IMAGENET, _UNSTATED),
            Published({"rfid": 4.42, "psnr": 24.7, "ssim": 0.73, "lpips": 0.88}, _COCO, _CARD),
        ),
    ),
    "sd3": Public("stabilityai/stable-diffusion-3-medium-diffusers"),
    "flux1": Public(
        "black-forest-labs/FLUX.1-schnell",
        (Published({"rfid": 0.165, "psnr": 32.87, "ssim": 0.924, "lpips": 0.045}, _IMAGENET, _UNSTATED),),
    ),
    "taesd": Public("madebyollin/taesd"),
    "dc-ae-f32": Public("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"),
    "dc-ae-f64": Public(
        "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers",
        (
            Published(
                {"rfid": 0.217, "psnr": 26.15, "ssim": 0.710, "lpips": 0.080},
                "ImageNet validation, 50,000 images at 512",
                f"512 pixels a side; {_UNSTATED}",
            ),
        ),
    ),
    "ldm-vq-f4": Public("CompVis/ldm-super-resolution-4x-openimages"),
    "amused-vq-f16": Public("amused/amused-256"),
}


class DeepCompression(nn.Module):
    """diffusers' AutoencoderDC, which `load_autoencoder` does not open, with what an evaluation needs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.stock = AutoencoderDC.from_pretrained(path)
        channels = self.stock.config.in_channels
        self.config = FrozenDict({**self.stock.config, "out_channels": channels})
        self.downsampling_factor = int(self.stock.spatial_compression_ratio)
        self.latents_channels = int(self.stock.config.latent_channels)

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Reconstructs images [B, C, H, W] in [-1, 1]. The factor divides height and width."""
        latents = self.stock.encode(images).latent
        return AutoencoderOutput(sample=self.stock.decode(latents).sample, latents=latents)


def main() -> int:
    arguments = _parse()
    wanted = [
        f"{model}={PUBLIC[model].path}" if model in PUBLIC else model for model in arguments.models or PUBLIC
    ]
    try:
        with distributed.init_from_environment() as device:
            models = _available(wanted)
            request = Request(
                models=[f"{name}={path}" for name, (path, _) in models.items()],
                data=arguments.data,
                out=arguments.out,
                split=arguments.split,
                protocol=arguments.protocol,
                limit=arguments.limit,
                inception=arguments.inception,
                overwrite=arguments.overwrite,
                settings=Settings(arguments.batch_size, arguments.num_workers),
            )
            opened = dict(models.values())
            results = evaluate(request, device, _say, opened.__getitem__)
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(render(results))
    return 0


def open_model(path: str) -> Any:
    """Opens what `load_autoencoder` opens, and diffusers' AutoencoderDC."""
    try:
        return load_autoencoder(path, torch_dtype=torch.float32)
    except ValueError as error:
        if "describes a AutoencoderDC" not in str(error):
            raise
        return DeepCompression(path)


def render(results: Results) -> str:
    """Returns measured and published numbers, their differences, and all metrics, as Markdown."""
    protocol = results.protocol
    data = protocol["data"]
    name = "a folder of photographs" if Path(data["name"]).exists() else f"{data['name']} ({data['split']})"
    here = f"{name}, {protocol['images']:,} images, {protocol['name']}"
    lines = [
        "| model | numbers | rFID | PSNR | SSIM | LPIPS alex | LPIPS vgg | LPIPS of which? | data | remark |",
        "| --- | --- |" + " ---: |" * 6 + " --- | --- |",
    ]
    for model, metrics in results.models.items():
        cells = [number(metrics[name].value, name) if name in metrics else "-" for name in _SHOWN]
        lines.append(f"| {model} | of this run | {' | '.join(cells)} | {here} | |")
        for published in PUBLIC[model].published if model in PUBLIC else ():
            found = published.numbers
            cells = [f"{found[name]:g}" if name in found else "-" for name in _SHOWN]
            remark = _difference(published, results)
            lines.append(f"| | published | {' | '.join(cells)} | {published.data} | {remark} |")
    home = str(Path.home())  # not to be published
    lines += [f"\n{remark.replace(home, '~')}." for remark in caveats(results)]
    return "\n".join([*lines, "\nAll metrics:\n", render_markdown(results)])


def _difference(published: Published, results: Results) -> str:
    images = results.protocol["images"]
    fewer = [f"{images:,} images here, and rFID falls with their number"] if images < 5000 else []
    return "; ".join([published.remark, *fewer])


def _available(wanted: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Returns name to path and model for those that can be opened, and reports why others cannot.

    Raises:
        ValueError: none can be opened.
    """
    models: dict[str, tuple[str, Any]] = {}
    with distributed.main_first():  # the first rank downloads
        for name, path in name_models(wanted).items():
            try:
                models[name] = (path, open_model(path))
            except (ValueError, OSError) as error:
                _say(f"{name} left out: {' '.join(str(error).split())}")
    if not models:
        raise ValueError("none of the models can be opened")
    return models


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(PUBLIC)}, or name=path")
    parser.add_argument("--data", required=True, help="a folder of images, or a dataset on the hub")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report")
    parser.add_argument("--split", help="split of the data")
    parser.add_argument("--protocol", default="imagenet-256", help="size and crop of the images")
    parser.add_argument("--limit", type=int, help="most images")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--num-workers", type=int, default=0, help="decoding processes")
    parser.add_argument("--inception", type=Path, help="file of FID's Inception weights")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
