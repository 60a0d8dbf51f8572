"""Measures decoders of one latent space beside their teacher: size, operations, time, and what they decode.

A MODEL is what `latentae evaluate` takes: `name=PLACE`, or a place. All must have latents of the teacher's
shape; decoders that upscale get a table of their own, beside the teacher's images enlarged by bicubic
interpolation. Time: one image of random latents, process time on a CPU and wall time on a GPU; the decoders
take turns, and a ratio is the median over the rounds. PSNR, LPIPS and FD-VGG16: of reconstructions, measured
as `latentae evaluate` does. Agreement: mean PSNR between a decoder's images and the teacher's, of the
teacher's latents; images that are larger than the teacher's are first averaged to their size. Without models
it measures small random ones, which shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import FrozenDict
from measuring import (
    FlopCount,
    benchmark_parser,
    default_device,
    describe_run,
    in_turns,
    print_head,
    print_row,
    show_ratio,
)
from torch import Tensor, nn

from latentae import KLVAE
from latentae.data import DataSelection
from latentae.evaluation.blocks import ImageBlocks, open_images, protocol_called
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.metrics import psnr
from latentae.evaluation.models import NamedModel, add_teacher, factor_of, open_models
from latentae.evaluation.networks import open_measures
from latentae.models import AutoencoderOutput
from latentae.models.decoders import downscale
from latentae.report.results import number

_SHOWN = {"psnr": "PSNR, dB", "lpips_alex": "LPIPS (alex)", "fd_vgg16": "FD-VGG16"}


class Enlarged(nn.Module):
    """A model whose images are enlarged by bicubic interpolation, with what an evaluation needs.

    Args:
        model: a ``LatentAutoencoder`` that does not upscale.
        upscale: how many times as large its images become, along each side.
    """

    def __init__(self, model: Any, upscale: int) -> None:
        super().__init__()
        self.model, self.upscale = model, upscale
        self.config = FrozenDict({**model.config, "upscale": upscale})
        self.downsampling_factor, self.latents_channels = model.downsampling_factor, model.latents_channels

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Reconstructs images [B, C, H, W] in [-1, 1] at ``upscale`` times their size."""
        output = self.model(images)
        return AutoencoderOutput(sample=self._enlarge(output.sample), latents=output.latents)

    def decode(self, latents: Tensor) -> AutoencoderOutput:
        """Decodes unscaled latents [B, c, h, w]."""
        return AutoencoderOutput(sample=self._enlarge(self.model.decode(latents).sample))

    def denormalise(self, latents: Tensor) -> Tensor:
        """Returns latents [B, c, h, w] as a denoiser sees them in the units of ``decode``."""
        unscaled: Tensor = self.model.denormalise(latents)
        return unscaled

    def _enlarge(self, images: Tensor) -> Tensor:
        return F.interpolate(images, scale_factor=self.upscale, mode="bicubic", align_corners=False)


def main() -> int:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    try:
        groups = open_decoders(arguments, device)
        blocks = _open_blocks(arguments, [model for group in groups for model in group])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    quality = measure_quality([model for group in groups for model in group], blocks, arguments, device)
    agreements = measure_agreement(groups, blocks, device)
    print(
        f"{describe_run(device)}\n{len(blocks.indices)} images, {arguments.protocol}; time over "
        f"{arguments.rounds} rounds."
    )
    for group in groups:
        print()
        _print_table(group, arguments, device, quality, agreements)
    return 0


# --- models and images


def open_decoders(arguments: argparse.Namespace, device: torch.device) -> list[list[NamedModel]]:
    """Returns the models in groups of one upscale, from 1 on; a group begins with its standard of comparison.

    Raises:
        ValueError: a model cannot be opened, its latents have another shape than the teacher's, or the
            teacher upscales.
    """
    if arguments.models:
        wanted, name = list(arguments.models), arguments.teacher
        if name is None:
            raise ValueError("models are measured beside their teacher: name it by --teacher PLACE")
        wanted, name = add_teacher(wanted, name)
        models = open_models(wanted, "float32", device)
    else:
        models, name = [NamedModel(*each) for each in _random_models(device)], "teacher"
    teacher = next(model for model in models if model.name == name)
    if teacher.upscale > 1:
        raise ValueError(f"the teacher {name} upscales, so no other decoder can be compared with it")
    for model in models:
        if _latents_of(model) != _latents_of(teacher):
            own, its = ("{} channels at 1/{}".format(*_latents_of(each)) for each in (model, teacher))
            raise ValueError(f"latents of {model.name} have {own} of the size, and those of {name} {its}")
    groups = [[teacher, *(model for model in models if model.upscale == 1 and model is not teacher)]]
    for upscale in sorted({model.upscale for model in models} - {1}):
        enlarged = NamedModel(
            f"{name}-bicubic-x{upscale}", teacher.path, Enlarged(teacher.autoencoder, upscale).eval()
        )
        groups.append([enlarged, *(model for model in models if model.upscale == upscale)])
    return groups


def _random_models(device: torch.device) -> list[tuple[str, str, nn.Module]]:
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shared = {**levels, "block_out_channels": (8, 16), "norm_num_groups": 4, "scaling_factor": 1.0}
    shapes: dict[str, dict[str, Any]] = {
        "teacher": {},
        "narrow": {"decoder_block_out_channels": (4, 8)},
        "x2": {"upscale": 2},
    }
    models: list[tuple[str, str, nn.Module]] = []
    for name, shape in shapes.items():
        torch.manual_seed(0)
        models.append((name, "random weights", KLVAE(**shared, **shape).eval().to(device)))
    return models


def _latents_of(model: NamedModel) -> tuple[int, int]:
    autoencoder: Any = model.autoencoder
    return autoencoder.latents_channels, factor_of(model)


def _open_blocks(arguments: argparse.Namespace, models: Sequence[NamedModel]) -> ImageBlocks:
    _, source = open_images(DataSelection(arguments.data, arguments.split))
    smallest = max(factor_of(model) * model.upscale for model in models)
    blocks = ImageBlocks(source, protocol_called(arguments.protocol), 3, arguments.limit, smallest)
    blocks.check()
    return blocks


# --- quality


def measure_quality(
    models: Sequence[NamedModel], blocks: ImageBlocks, arguments: argparse.Namespace, device: torch.device
) -> dict[str, list[str]]:
    """Returns model -> its numbers as text, in the order of ``_SHOWN``; "-" where a network is missing."""
    measures = open_measures(device, lpips=("alex",))
    measures.features.pop("inception", None)  # not shown, and expensive
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        settings = Settings(arguments.batch_size, cycle_images=0)
        data = f"{arguments.data} {arguments.split}"
        evaluation = Evaluation(blocks, measures, settings, work, data, device, _say)
        evaluation.measure(models)
        found = {model.name: evaluation.result(model).metrics for model in models}
    return {
        model: [number(metrics[name].value, name) if name in metrics else "-" for name in _SHOWN]
        for model, metrics in found.items()
    }


@torch.no_grad()
def measure_agreement(
    groups: Sequence[Sequence[NamedModel]], blocks: ImageBlocks, device: torch.device
) -> dict[str, float]:
    """Returns model -> mean PSNR in dB between its and the teacher's decoding of the teacher's latents."""
    teacher = groups[0][0]
    ratios: dict[str, list[float]] = {}
    for index in blocks.indices:
        image = blocks.prepare(index)[None].to(device)
        for group in groups:
            upscale = group[0].upscale
            latents = teacher.normalise(teacher.encode(downscale(image, upscale)))
            expected = _decoded(teacher, latents)
            for model in group:
                images = downscale(_decoded(model, latents), upscale)
                ratios.setdefault(model.name, []).append(psnr(images, expected).item())
    return {name: sum(values) / len(values) for name, values in ratios.items()}


def _decoded(model: NamedModel, latents: Tensor) -> Tensor:
    autoencoder: Any = model.autoencoder
    images: Tensor = autoencoder.decode(autoencoder.denormalise(latents)).sample
    return images


# --- size, operations, time


def _print_table(
    group: Sequence[NamedModel],
    arguments: argparse.Namespace,
    device: torch.device,
    quality: dict[str, list[str]],
    agreements: dict[str, float],
) -> None:
    first = group[0]
    costs = [measure_costs(group, side, arguments.rounds, device) for side in arguments.sizes]
    heads = [
        head
        for side in arguments.sizes
        for head in (f"GFLOP, {side} px", f"ms, {side} px", f"time of {first.name} / it (range)")
    ]
    print_head(
        "decoder" if first.upscale == 1 else f"decoder of images {first.upscale} times as large",
        *("parameters", *heads, *_SHOWN.values(), "agreement, dB"),
    )
    for model in group:
        agreement = agreements[model.name]
        print_row(
            model.name,
            f"{count_parameters(model.autoencoder):,}",
            *(cell for cost in costs for cell in cost[model.name]),
            *quality[model.name],
            "-" if agreement == float("inf") else number(agreement, "psnr"),
        )


def count_parameters(model: Any) -> int:
    """Returns the number of parameters that only decoding uses."""
    inner = model.model if isinstance(model, Enlarged) else model
    parts = [inner.decoder, getattr(inner, "post_quant_conv", None)]
    return sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())


def measure_costs(
    group: Sequence[NamedModel], side: int, rounds: int, device: torch.device
) -> dict[str, tuple[str, str, str]]:
    """Returns model -> GFLOP, ms and ratio, as text, of decoding one image of ``side`` pixels."""
    channels, factor = _latents_of(group[0])
    position = side // (factor * group[0].upscale)
    latents = torch.randn(1, channels, position, position, generator=torch.Generator().manual_seed(0))
    calls = {model.name: _decoding(model, latents.to(device)) for model in group}
    operations = {}
    for name, call in calls.items():
        with FlopCount() as count:
            call()
        operations[name] = f"{count.total / 1e9:.2f}"
    took = in_turns(calls, rounds, device)
    first = took[group[0].name]
    return {
        name: (operations[name], f"{1000 * sorted(spent)[len(spent) // 2]:.1f}", show_ratio(first, spent))
        for name, spent in took.items()
    }


def _decoding(model: NamedModel, latents: Tensor) -> Callable[[], Tensor]:
    autoencoder: Any = model.autoencoder

    @torch.no_grad()
    def call() -> Tensor:
        images: Tensor = autoencoder.decode(latents).sample
        return images

    return call


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=7, threads=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="name=PLACE, or PLACE")
    parser.add_argument("--teacher", help="the model whose decoder the others stand in for")
    parser.add_argument("--data", default="photos", help="images, as open_source takes them")
    parser.add_argument("--split", default="", help="split of the data; empty: its validation split")
    parser.add_argument("--protocol", default="native", help="size and crop of the images")
    parser.add_argument("--limit", type=int, help="most images")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256], help="sides, in pixels, of the image that is timed"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images per batch, for quality")
    parser.add_argument("--work", type=Path, help="folder that keeps measurements for the next call")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
