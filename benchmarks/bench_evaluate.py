"""Compares an evaluation with saving PNGs and calling torch-fidelity: images per second, and memory.

Both ways take turns on the same images, reconstructions and (random, saved) Inception weights in one process.
Ratios are medians over the rounds of process time (wall time on a GPU). The model is a blur that costs almost
nothing, so features and per-image metrics are compared. The distance at the end is left out; it takes seconds
for any number of images. Memory is the peak of a process beyond what it held after loading: once for
measuring and joining images, once for joining alone, with as many rows of features as ImageNet's validation
images give. Needs torch-fidelity and torchmetrics.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
from pathlib import Path

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    benchmark_parser,
    default_device,
    describe_run,
    in_fresh_process,
    in_turns,
    peak_memory,
    print_head,
    print_row,
    show_ratio,
)
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import extract_featuresdict_from_input_id
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from latentae.data import training_photos
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks, block_loader
from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.features import InceptionFeatures, Measures
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.evaluation.single_block import reference_features
from latentae.losses.perceptual import LPIPS
from latentae.models import AutoencoderOutput
from latentae.weights import load_trunk

SIDE = 256
_BATCH = 16


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    if arguments.memory_of or arguments.memory_of_rows:
        print(_memory_of_images(arguments.memory_of) or _memory_of_rows(arguments.memory_of_rows))
        return
    print(describe_run(device))
    print(f"{arguments.images} images of {SIDE}x{SIDE}, batches of {_BATCH}, {arguments.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        _speed(arguments, device, Path(folder))
    for what, option, counts in (
        ("images measured and joined", "--memory-of", arguments.memory_images),
        ("rows of 2048 features joined, both sides", "--memory-of-rows", arguments.memory_rows),
    ):
        print()
        print_head(what, "peak memory, MB")
        for count in counts:
            print_row(f"{count:,}", f"{in_fresh_process(__file__, option, count):.0f}")


def _speed(arguments: argparse.Namespace, device: torch.device, folder: Path) -> None:
    weights = folder / "inception.pth"
    save_random_inception(weights)
    source, blur = Windows(arguments.images), Blur().to(device)
    inception = InceptionFeatures(weights, device)
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    theirs.to(device)
    trunk = load_trunk("alex")
    distance, package = LPIPS(trunk).to(device), lpips.LPIPS(pnet_rand=True, verbose=False).to(device)

    def features_alone() -> None:
        for block in block_loader(
            ImageBlocks(source, PROTOCOLS["native"], 3), list(range(-(-len(source) // 32)))
        ):
            reference_features(block, inception, device, _BATCH)
            for start in range(0, len(block.images), _BATCH):
                images = to_images(torch.stack(block.images[start : start + _BATCH]).to(device))
                inception(to_uint8(blur(images).sample)).cpu()

    def everything(is_cached: bool) -> None:
        os.environ["LATENTAE_CACHE"] = str(folder / "kept" if is_cached else tempfile.mkdtemp(dir=folder))
        measures = Measures({"lpips_alex": distance}, {"inception": inception})
        blocks, work = ImageBlocks(source, PROTOCOLS["native"], 3), Path(tempfile.mkdtemp(dir=folder))
        evaluation = Evaluation(blocks, measures, Settings(_BATCH, cycle_images=0), work, "", device)
        evaluation.measure([NamedModel("blur", "", blur)])

    def with_files(has_metrics: bool, is_cached: bool = False) -> None:
        places = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(2)]
        for start in range(0, len(source), _BATCH):
            numbers = range(start, min(start + _BATCH, len(source)))
            pixels = torch.from_numpy(np.stack([source.load(n, 3) for n in numbers])).permute(0, 3, 1, 2)
            images = to_images(pixels.to(device))
            with torch.no_grad():
                made = to_uint8(blur(images).sample)
                if has_metrics:
                    _usual_metrics(to_images(made), images, package)
            for place, batch in zip(places[is_cached:], (pixels, made.cpu())[is_cached:], strict=True):
                for number, picture in zip(numbers, batch, strict=True):
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place / f"{number:06d}.png")
        for place in places[is_cached:]:
            extract_featuresdict_from_input_id(
                1,
                theirs,
                input1=str(place),
                batch_size=_BATCH,
                cuda=device.type == "cuda",
                save_cpu_ram=True,  # decodes in this process, whose time is measured
                verbose=False,
            )

    everything(is_cached=True)  # fills the cache
    print_head("what is measured", "PNGs and torch-fidelity, images/s", "ours, images/s", "ratio (range)")
    for name, pair in {
        "features of rFID": (lambda: with_files(False), features_alone),
        "and PSNR, L1, SSIM, MS-SSIM, LPIPS": (lambda: with_files(True), lambda: everything(False)),
        "the same of a second model": (lambda: with_files(True, True), lambda: everything(True)),
    }.items():
        took = in_turns(dict(zip(("theirs", "ours"), pair, strict=True)), arguments.rounds, device)
        speeds = [f"{arguments.images / statistics.median(seconds):.2f}" for seconds in took.values()]
        print_row(name, *speeds, show_ratio(took["theirs"], took["ours"]))


def _usual_metrics(shown: torch.Tensor, images: torch.Tensor, distance: nn.Module) -> None:
    """Computes the metrics of an evaluation with the usual packages."""
    peak_signal_noise_ratio(shown, images, data_range=2.0, reduction="none", dim=(1, 2, 3))
    (shown - images).abs().mean(dim=(1, 2, 3))
    structural_similarity_index_measure(shown, images, data_range=2.0, reduction="none")
    multiscale_structural_similarity_index_measure(shown, images, data_range=2.0, reduction="none")
    distance(shown, images)


def _memory_of_images(count: int) -> float:
    """Returns the MB of measuring and joining images with as many features as Inception has."""
    if not count:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTAE_CACHE"] = folder
        named = NamedModel("blur", "", Blur())
        evaluation = Evaluation(
            ImageBlocks(Windows(count), PROTOCOLS["native"], 3),
            Measures({}, {"inception": RandomFeatures()}),
            Settings(_BATCH, cycle_images=0),
            Path(folder, "work"),
            "",
            torch.device("cpu"),
        )

        def run() -> None:
            evaluation.measure([named])
            evaluation.result(named)

        return peak_memory(run, torch.device("cpu"))


def _memory_of_rows(count: int) -> float:
    """Returns the MB of the Fréchet and the kernel distance between two files of features."""
    with tempfile.TemporaryDirectory() as folder:
        files = [FeatureFile(Path(folder, name), RandomFeatures.dimensions) for name in ("first", "second")]
        generator = torch.Generator().manual_seed(0)
        for start in range(0, count, 1000):
            rows = torch.rand(min(1000, count - start), RandomFeatures.dimensions, generator=generator)
            for file in files:
                file.append(rows)
        return peak_memory(lambda: feature_distances("inception", *files), torch.device("cpu"))


class Windows:
    """An image source: any number of windows of the built-in photographs."""

    def __init__(self, count: int) -> None:
        photos = training_photos()
        self.photos = [photos.load(index, 3) for index in range(len(photos))]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> np.ndarray:
        photo = self.photos[index % len(self.photos)]
        generator = np.random.default_rng(index)
        top, left = (int(generator.integers(side - SIDE + 1)) for side in photo.shape[:2])
        return photo[top : top + SIDE, left : left + SIDE]


class Blur(nn.Module):
    """A model that reconstructs at half the resolution."""

    downsampling_factor = 2

    def forward(self, images: torch.Tensor) -> AutoencoderOutput:
        small = F.avg_pool2d(images, 2)
        return AutoencoderOutput(sample=F.interpolate(small, scale_factor=2.0, mode="bilinear"))


class RandomFeatures:
    """A feature network with as many features as Inception that costs almost nothing."""

    name, dimensions, smallest_side, identity = "random", 2048, 1, "random-2048"

    def __init__(self) -> None:
        self.weight = torch.randn(3 * 16 * 16, 2048, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images.float(), 16).flatten(1) @ self.weight


def save_random_inception(path: Path) -> None:
    """Writes random weights under torch-fidelity's names, by which activations keep their size."""

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object) -> None:
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Unloaded("inception", ["2048"], feature_extractor_weights_path=empty)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=5, threads=1)
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument(
        "--memory-images", type=int, nargs="+", default=[250, 1000], help="images of the memory table"
    )
    parser.add_argument(
        "--memory-rows", type=int, nargs="+", default=[5_000, 50_000], help="rows of the memory table"
    )
    parser.add_argument("--memory-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of-rows", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
