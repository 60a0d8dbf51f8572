"""Our training step against the published formulation: time and agreement, in one run.

`python benchmarks/bench_step.py [--config NAME] [--rounds N] [--threads N]` prints a table. Both formulations
take turns on the same networks and images; the ratio is the median over the rounds of process time against
process time (wall time on a GPU, after synchronisation).
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from textbook import textbook_step

from latentae import build
from latentae.config import load_config
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep


def main() -> None:
    arguments = _parse()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config("vqgan", ["--config", arguments.config, *arguments.overrides])
    size = config.data.height_and_width
    autoencoder = build.build_autoencoder(config.model, max(size)).to(device)
    objective = build.build_objective(config.loss).to(device)
    discriminator = build.build_discriminator(config).to(device)
    terms = build.build_adversarial_terms(config.loss)
    images = torch.rand(config.batch_size, config.model.in_channels, *size, device=device) * 2 - 1
    theirs = copy.deepcopy((autoencoder, discriminator))
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, discriminator, terms)

    print(f"{_hardware(device)}, {arguments.threads} threads, torch {torch.__version__}, commit {_commit()}")
    print(f"config {arguments.config}: {config.batch_size} images of {size[0]}x{size[1]}\n")
    print("| the adversarial loss is | published, images/s | ours, images/s | ratio (range) |")
    print("| --- | --- | --- | --- |")
    for name, number in {"off": 0, "on": terms.start_step}.items():
        if name == "off" and terms.discriminator_learns(0):
            continue
        pair = (
            lambda number=number: textbook_step(*theirs, objective, terms, images, number),
            lambda number=number: step(images, StepRandomness(0, number)),
        )
        rounds = [[_seconds(run, device) for run in pair] for _ in range(arguments.rounds + 1)][1:]
        ratios = [published / ours for published, ours in rounds]
        speeds = [config.batch_size / statistics.median(column) for column in zip(*rounds, strict=True)]
        print(
            f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="quickstart", help="a shipped VQGAN config or a path")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="key=value, as in training")
    return parser.parse_args()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    started = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
