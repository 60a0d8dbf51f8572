"""How a step's time and memory grow with the image's side, the batch, the number of codes and the ranks.

`python benchmarks/bench_scaling.py [--rounds N] [--threads N] [key=value ...]` prints a table for each, and
the exponent p of cost ~ x^p fitted to all points by least squares of logarithms: 2 in the side and 1 in the
batch say that nothing but the work grows. Time is process time (wall time on a GPU); memory is what autograd
keeps for the backward pass of the autoencoder, in training as `performance=auto` sets it up.

Ranks are processes on this machine, each with the whole batch: 0 says that another one costs the others
nothing. Theirs is a step of the trainer, optimizer and averages included. Its wall time is given as well, and
means something where there is a core, or a GPU, for each.

Noise is what one rank draws in a step with so many ranks: a posterior of 4 x 32 x 32 for each of 16 images,
and the draws that both sides are augmented by. It is drawn on a processor, whatever the device.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.multiprocessing as mp
from machine import commit, hardware
from measuring import in_turns
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
_RANK_STEPS = 5  # of each rank in a round
_NOISE_WORLDS, _NOISE_BATCH, _NOISE_DRAWS = (1, 8, 64), 16, 10


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else hardware()
    print(f"{name}, {arguments.threads} threads, torch {torch.__version__}, commit {commit()}.")
    print(
        f"quickstart with {arguments.overrides or 'nothing changed'}, at {_BASE}; {arguments.rounds} rounds\n"
    )
    for axis, values in _AXES.items():
        steps = {str(value): _step({**_BASE, axis: value}, arguments.overrides, device) for value in values}
        measured = in_turns({value: step for value, (step, _) in steps.items()}, arguments.rounds, device)
        seconds = [statistics.median(spent) for spent in measured.values()]
        kept = [meter() / 2**20 for _, meter in steps.values()]
        print(f"| {axis} | s | kept MiB |\n| --- | --- | --- |")
        for value, spent, memory in zip(values, seconds, kept, strict=True):
            print(f"| {value} | {spent:.3f} | {memory:.1f} |")
        print(f"| exponent | {exponent(values, seconds):.2f} | {exponent(values, kept):.2f} |\n")
    worlds = tuple(range(1, 1 + arguments.ranks))
    spent = [_ranks(world, arguments) for world in worlds]
    print("| ranks | s of processor time of each | s |\n| --- | --- | --- |")
    for world, (own, wall) in zip(worlds, spent, strict=True):
        print(f"| {world} | {own:.3f} | {wall:.3f} |")
    if len(worlds) > 1:
        own, wall = (exponent(worlds, [*costs]) for costs in zip(*spent, strict=True))
        print(f"| exponent | {own:.2f} | {wall:.2f} |")
    draws = {str(world): partial(_noise, world) for world in _NOISE_WORLDS}
    measured = in_turns(draws, arguments.rounds, torch.device("cpu"))
    noise = [1000 * statistics.median(spent) / _NOISE_DRAWS for spent in measured.values()]
    print("\n| ranks | ms of one rank's noise |\n| --- | --- |")
    for world, spent_on_noise in zip(_NOISE_WORLDS, noise, strict=True):
        print(f"| {world} | {spent_on_noise:.2f} |")
    print(f"| exponent | {exponent(_NOISE_WORLDS, noise):.2f} |")


def exponent(values: tuple[int, ...], costs: list[float]) -> float:
    """p of the power law costs ~ values^p that is nearest in logarithms."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, costs))
    return statistics.linear_regression(x, y).slope


def _step(
    settings: dict[str, int], overrides: list[str], device: torch.device
) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step, and what gives the bytes that its autoencoder's forward keeps."""
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
    """The last rank's draws of a few steps."""
    for step in range(_NOISE_DRAWS):
        randomness = StepRandomness(0, step, rank=world - 1, world_size=world)
        randomness.normal("posterior", _NOISE_BATCH, 4, 32, 32)
        for side in ("images", "reconstruction"):
            randomness.uniform(f"augmented {side}", _NOISE_BATCH, 7)


def _ranks(world: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """A step's time on the processor and on the clock, the median of the steps of all ranks."""
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2, help="at most, in the last table")
    parser.add_argument("overrides", nargs="*", help="key=value, as in training")
    return parser.parse_args()


if __name__ == "__main__":
    main()
