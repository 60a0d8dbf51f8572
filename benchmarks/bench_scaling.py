"""Measures how a step's time and memory grow with image size, batch size, number of codes and ranks.

Prints a table for each, and the exponent p of cost ~ x^p, fitted to all points by least squares of
logarithms: 2 for the image side and 1 for the batch mean that cost is proportional to the work. Time is
process time (wall time on a GPU). Memory is what autograd keeps for the backward pass of the autoencoder,
with `performance=auto`.

Ranks are processes on this machine, each with the whole batch, so an exponent of 0 means that another rank
costs the others nothing. They run whole steps of the trainer, optimizer and averages included. Their wall
time is meaningful only if each has a core or a GPU.

Noise is what one rank draws per step with that number of ranks, always on the CPU: a posterior of 4 x 32 x 32
for each of 16 images, and the draws that augment images and reconstructions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.multiprocessing as mp
from measuring import benchmark_parser, default_device, describe_run, in_turns, print_head, print_row
from torch import Tensor

from latentae import build
from latentae.config import load_config
from latentae.training.adversary import Adversary
from latentae.training.dry_run import WorkingSpace
from latentae.training.log import Meter
from latentae.training.randomness import StepRandomness
from latentae.training.speed import tune
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer

_BASE = {"data.image_size": 64, "batch_size": 2, "model.quantizer.num_codes": 1024}
_AXES = {
    "data.image_size": (32, 64, 128),
    "batch_size": (1, 2, 4, 8),
    "model.quantizer.num_codes": (256, 1024, 4096, 16384),
}
_RANK_STEPS = 5  # per round
_NOISE_WORLDS, _NOISE_BATCH, _NOISE_DRAWS = (1, 8, 64), 16, 10


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3, threads=1)
    parser.add_argument("--ranks", type=int, default=2, help="most ranks")
    parser.add_argument("overrides", nargs="*", help="key=value, as in training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    print(describe_run(device))
    changes = arguments.overrides or "no overrides"
    print(f"quickstart with {changes}, at {_BASE}; {arguments.rounds} rounds\n")

    for axis, values in _AXES.items():
        steps = {str(value): _step({**_BASE, axis: value}, arguments.overrides, device) for value in values}
        measured = in_turns({value: step for value, (step, _) in steps.items()}, arguments.rounds, device)
        seconds = [statistics.median(spent) for spent in measured.values()]
        kept = [meter() / 2**20 for _, meter in steps.values()]
        _print_table((axis, "s", "kept MiB"), values, (seconds, ".3f"), (kept, ".1f"))

    worlds = tuple(range(1, 1 + arguments.ranks))
    own, wall = zip(*(_ranks(world, arguments) for world in worlds), strict=True)
    _print_table(("ranks", "s of processor time of each", "s"), worlds, (own, ".3f"), (wall, ".3f"))

    draws = {str(world): partial(_noise, world) for world in _NOISE_WORLDS}
    measured = in_turns(draws, arguments.rounds, torch.device("cpu"))
    noise = [1000 * statistics.median(spent) / _NOISE_DRAWS for spent in measured.values()]
    _print_table(("ranks", "ms of one rank's noise"), _NOISE_WORLDS, (noise, ".2f"))


def _print_table(head: Sequence[str], values: Sequence[int], *columns: tuple[Sequence[float], str]) -> None:
    """Prints costs over values, each with its format, and their exponents."""
    print_head(*head)
    for row, value in enumerate(values):
        print_row(value, *(format(costs[row], digits) for costs, digits in columns))
    if len(values) > 1:
        print_row("exponent", *(f"{exponent(values, costs):.2f}" for costs, _ in columns))
    print()


def exponent(values: Sequence[int], costs: Sequence[float]) -> float:
    """Returns p of the power law costs ~ values^p, fitted by least squares of logarithms."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, costs))
    return statistics.linear_regression(x, y).slope


def _step(
    settings: dict[str, int], overrides: list[str], device: torch.device
) -> tuple[Callable[[], None], Callable[[], int]]:
    """Returns a training step, and a function that measures the bytes its forward pass keeps."""
    torch.manual_seed(0)
    given = [f"{key}={value}" for key, value in settings.items()]
    config = load_config("vqgan", ["--config", "quickstart", *given, *overrides])
    size = config.data.height_and_width
    autoencoder = build.build_autoencoder(config.model, max(size)).to(device).train()
    objective = build.build_objective(config.loss).to(device)
    tune(autoencoder, objective, size, device)
    discriminator = build.build_discriminator(config).to(device)
    terms = build.build_adversarial_terms(config)
    step = TrainingStep(autoencoder, autoencoder.last_layer, objective, Adversary(discriminator, terms))
    images: Tensor = torch.rand(config.batch_size, config.model.in_channels, *size, device=device) * 2 - 1

    def run() -> None:
        step(images, StepRandomness(0, terms.start_step))
        autoencoder.zero_grad(set_to_none=True)
        discriminator.zero_grad(set_to_none=True)

    def kept() -> int:
        with WorkingSpace() as space:
            output = autoencoder(images)
            del output
        return space.peak

    return run, kept


def _noise(world: int) -> None:
    """Makes the draws of the last rank for a few steps."""
    for step in range(_NOISE_DRAWS):
        randomness = StepRandomness(0, step, rank=world - 1, world_size=world)
        randomness.normal("posterior", _NOISE_BATCH, 4, 32, 32)
        for side in ("images", "reconstruction"):
            randomness.uniform(f"augmented {side}", _NOISE_BATCH, 7)


def _ranks(world: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Returns the process time and the wall time of a step, medians over the steps of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, Path(folder), arguments), nprocs=world)
        spent = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    own, wall = (statistics.median(chain(*times)) for times in zip(*spent, strict=True))
    return own, wall


def _rank(rank: int, world: int, folder: Path, arguments: argparse.Namespace) -> None:
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getppid() % 20000)}
    given = [f"{key}={value}" for key, value in _BASE.items()]
    words = [*given, f"cpu_threads={arguments.threads}", f"output_dir={folder / 'run'}", "trackers=[]"]
    config = load_config("vqgan", ["--config", "quickstart", *words, *arguments.overrides])
    trainer = Trainer(config, rehearsal=True)
    trainer.step = config.loss.adversarial.start_step
    batches, meter = trainer.batches(), Meter()
    own, wall = [], []
    for _ in range(1 + _RANK_STEPS * arguments.rounds):
        began = time.process_time(), time.perf_counter()
        trainer.optimizer_step(batches, meter)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        own.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    (folder / f"{rank}.json").write_text(json.dumps([own[1:], wall[1:]]))


if __name__ == "__main__":
    main()
