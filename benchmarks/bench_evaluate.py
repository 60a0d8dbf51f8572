"""Evaluating against saving PNGs and calling torch-fidelity: images/s, and memory over the number of images.

`python benchmarks/bench_evaluate.py [--images N] [--rounds N]` prints tables. Both ways take turns on the
same images, reconstructions and (random, saved) Inception weights in one process; ratios are medians over the
rounds of process time (wall time on a GPU). The model is a blur that costs next to nothing, so that the
judging is compared: features and per-image metrics, not the distance at the end, which takes seconds for any
number of images. Memory is what a process takes at its highest, beyond what it had with all it needs loaded:
once of measuring and joining images, once of joining alone, for as many rows of features as ImageNet's
validation images give. Needs torch-fidelity and torchmetrics.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import lpips
import numpy as np
import torch
from measuring import in_turns, peak_memory, ratios
from PIL import Image
from stand_ins import SIDE, Blur, RandomFeatures, Windows, save_random_inception
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import extract_featuresdict_from_input_id
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks, block_loader
from latentae.evaluation.distances import FeatureFile, feature_distances
from latentae.evaluation.evaluate import commit, hardware
from latentae.evaluation.features import InceptionFeatures, Measures
from latentae.evaluation.measuring import Evaluation, Settings, reference_features
from latentae.evaluation.metrics import to_images, to_uint8
from latentae.evaluation.models import NamedModel
from latentae.losses.perceptual import LPIPS
from latentae.weights import load_trunk

_BATCH = 16


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.memory_of or arguments.memory_of_rows:
        print(_memory_of_images(arguments.memory_of) or _memory_of_rows(arguments.memory_of_rows))
        return
    print(f"{hardware(device)}, {arguments.threads} threads, torch {torch.__version__}, commit {commit()}")
    print(f"{arguments.images} images of {SIDE}x{SIDE}, batches of {_BATCH}, {arguments.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        _speed(arguments, device, Path(folder))
    for what, option, counts in (
        ("images measured and joined", "--memory-of", arguments.memory_images),
        ("rows of 2048 features joined, both sides", "--memory-of-rows", arguments.memory_rows),
    ):
        print(f"\n| {what} | memory at its highest, MB |\n| --- | --- |", flush=True)
        for count in counts:
            print(f"| {count:,} | {_in_a_new_process(option, count):.0f} |", flush=True)


def _in_a_new_process(option: str, count: int) -> float:
    # So that freed tensors return to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, option, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


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
                save_cpu_ram=True,  # decodes in this process, whose time is taken
                verbose=False,
            )

    everything(is_cached=True)  # fills the cache
    print("| what is measured | PNGs and torch-fidelity, images/s | ours, images/s | ratio (range) |")
    print("| --- | --- | --- | --- |")
    for name, pair in {
        "features of rFID": (lambda: with_files(False), features_alone),
        "and PSNR, L1, SSIM, MS-SSIM, LPIPS": (lambda: with_files(True), lambda: everything(False)),
        "the same of a second model": (lambda: with_files(True, True), lambda: everything(True)),
    }.items():
        took = in_turns(dict(zip(("theirs", "ours"), pair, strict=True)), arguments.rounds, device)
        middle, least, most = ratios(took["theirs"], took["ours"])
        speeds = [arguments.images / statistics.median(seconds) for seconds in took.values()]
        print(
            f"| {name} | {speeds[0]:.2f} | {speeds[1]:.2f} | {middle:.2f} ({least:.2f} to {most:.2f}) |",
            flush=True,
        )


def _usual_metrics(shown: torch.Tensor, images: torch.Tensor, distance: nn.Module) -> None:
    """What an evaluation measures, by the packages that people use."""
    peak_signal_noise_ratio(shown, images, data_range=2.0, reduction="none", dim=(1, 2, 3))
    (shown - images).abs().mean(dim=(1, 2, 3))
    structural_similarity_index_measure(shown, images, data_range=2.0, reduction="none")
    multiscale_structural_similarity_index_measure(shown, images, data_range=2.0, reduction="none")
    distance(shown, images)


def _memory_of_images(count: int) -> float:
    """MB of measuring so many images with as many features as Inception's, and joining them."""
    if not count:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTAE_CACHE"] = folder
        subject = NamedModel("blur", "", Blur())
        evaluation = Evaluation(
            ImageBlocks(Windows(count), PROTOCOLS["native"], 3),
            Measures({}, {"inception": RandomFeatures()}),
            Settings(_BATCH, cycle_images=0),
            Path(folder, "work"),
            "",
            torch.device("cpu"),
        )

        def run() -> None:
            evaluation.measure([subject])
            evaluation.result(subject)

        return peak_memory(run, torch.device("cpu"))


def _memory_of_rows(count: int) -> float:
    """MB of the Fréchet and the kernel distance between two files of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        files = [FeatureFile(Path(folder, name), RandomFeatures.dimensions) for name in ("first", "second")]
        generator = torch.Generator().manual_seed(0)
        for start in range(0, count, 1000):
            rows = torch.rand(min(1000, count - start), RandomFeatures.dimensions, generator=generator)
            for file in files:
                file.append(rows)
        return peak_memory(lambda: feature_distances("inception", *files), torch.device("cpu"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-images", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--memory-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of-rows", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
