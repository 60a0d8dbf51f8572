"""Our training step against other programs': time, operations, memory, in one run.

`python benchmarks/bench_step.py [--rounds N] [--threads N] [key=value ...]` prints two tables, for a VQGAN
and for a KL-VAE of the same layers. The formulations (formulations.py) take turns on the same images; a ratio
is the median over the rounds of process time against process time (wall time on a GPU, after
synchronisation). Memory is measured in a process of its own for each. Without key=value the networks are
taming-transformers' VQGAN at half its width, LPIPS on VGG16 and its PatchGAN, on 4 images of 128 x 128.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from formulations import (
    diffusers_kl_steps,
    diffusers_vqgan_steps,
    packaged_lpips,
    taming_step,
    with_taming_blocks,
)
from machine import commit, hardware
from measuring import FlopCount, convolution_rate, in_turns, peak_memory, ratios
from torch import Tensor, nn

from latentae import build
from latentae.config import RunConfig, load_config
from latentae.losses.reconstruction import ReconstructionObjective
from latentae.models.lean import make_lean
from latentae.training.adversary import Adversary
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep

SETTINGS = [
    "model.block_out_channels=[64,64,128,128,256]",
    "model.attention_levels=[false,false,false,false,true]",
    "model.layers_per_block=2",
    "model.norm_num_groups=32",
    "loss.perceptual.trunk=vgg",
    "discriminator.base_channels=64",
    "discriminator.num_layers=3",
    "data.image_size=128",
    "batch_size=4",
]
_TOO_NOISY = 0.15  # the ratios' range over their median


@dataclass
class Bench:
    """The networks of one kind, and each formulation's step on them."""

    autoencoder: nn.Module
    discriminator: nn.Module
    objective: ReconstructionObjective
    images: Tensor
    steps: dict[str, Callable[[], None]]

    def run(self, name: str) -> Callable[[], None]:
        """One step of a formulation, which leaves no gradients behind."""

        def step() -> None:
            self.steps[name]()
            for network in (self.autoencoder, self.discriminator, self.objective):
                network.zero_grad(set_to_none=True)

        return step


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.memory_of:
        kind, name = arguments.memory_of
        run = _bench(kind, arguments.overrides, device).run(name)
        run()
        print(peak_memory(run, device))
        return
    rate = convolution_rate(device)
    print(
        f"{_device_name(device)}, {arguments.threads} threads, torch {torch.__version__}, commit {commit()}."
    )
    print(f"Convolutions alone reach {rate / 1e9:.0f} GFLOP/s.\n")
    for kind in arguments.kinds:
        _table(kind, arguments, device, rate)


def _table(kind: str, arguments: argparse.Namespace, device: torch.device, rate: float) -> None:
    bench = _bench(kind, arguments.overrides, device)
    if arguments.steps:
        bench.steps = {name: step for name, step in bench.steps.items() if name in arguments.steps}
    operations = {}
    for name in bench.steps:
        with FlopCount() as count:
            bench.run(name)()
        operations[name] = count.total
    measured = in_turns({name: bench.run(name) for name in bench.steps}, arguments.rounds, device)
    peaks = {name: _memory(kind, name, arguments) for name in bench.steps}
    names = list(bench.steps)
    others, ours = [name for name in names if not name.startswith("ours")], names[-1]
    rate_now = max(rate, convolution_rate(device))
    shape = "x".join(str(side) for side in bench.images.shape[2:])
    print(f"{kind}: {len(bench.images)} images of {shape}, an update of each; {arguments.rounds} rounds\n")
    columns = ["s", "GFLOP", "of the convolutions' rate", "peak MiB", *(f"{other} / it" for other in others)]
    print(f"| step | {' | '.join(columns)} |")
    print("| --- " * (5 + len(others)) + "|")
    noisy = False
    for name in names:
        against = [ratios(measured[other], measured[name]) for other in others]
        noisy |= name == ours and any(high - low > _TOO_NOISY * middle for middle, low, high in against)
        spent = sorted(measured[name])[len(measured[name]) // 2]
        cells = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in against]
        share = operations[name] / spent / rate_now
        row = [
            name,
            f"{spent:.2f}",
            f"{operations[name] / 1e9:.0f}",
            f"{share:.0%}",
            f"{peaks[name]:.0f}",
            *cells,
        ]
        print(f"| {' | '.join(row)} |")
    print("\nToo noisy to tell: run it again on a quieter machine.\n" if noisy else "")


def _bench(kind: str, overrides: list[str], device: torch.device) -> Bench:
    torch.manual_seed(0)
    config = _config(kind, overrides)
    size = config.data.height_and_width
    autoencoder = build.build_autoencoder(config.model, max(size)).to(device).train()
    objective = build.build_objective(config.loss).to(device)
    discriminator = build.build_discriminator(config).to(device)
    images = torch.rand(config.batch_size, config.model.in_channels, *size, device=device) * 2 - 1
    terms, lean, leanest = build.build_adversarial_terms(config), *(copy.deepcopy(autoencoder) for _ in "12")
    make_lean(lean)
    make_lean(leanest, recomputed_channels=config.model.block_out_channels[0])
    chunk = max(1, 2**15 // (size[0] * size[1])) if device.type == "cpu" else None

    def ours(model: nn.Module, chunk: int | None, lpips: nn.Module | None = None) -> Callable[[], None]:
        losses = objective if lpips is None else with_perceptual(objective, lpips)
        step = TrainingStep(
            model,
            model.last_layer,
            losses,
            Adversary(discriminator, terms),
            regulariser=build.build_regulariser(config.loss),
            latents_shape=model.latents_shape if kind == "KL-VAE" else None,
        )

        def run() -> None:
            losses.perceptual.chunk = chunk
            step(images, StepRandomness(0, terms.start_step))
            losses.perceptual.chunk = None
            model.zero_grad(set_to_none=True)

        return run

    own = {
        "ours, stock blocks": ours(autoencoder, None),
        "ours, lean blocks": ours(lean, None),
        "ours, lean blocks, LPIPS in chunks": ours(lean, chunk),
        "ours, leanest blocks, LPIPS by image": ours(leanest, 1),
        "ours, lean blocks, LPIPS in bfloat16": ours(
            lean, chunk, build.build_lpips("vgg", "bfloat16").to(device)
        ),
    }
    networks = (autoencoder, discriminator)
    package = packaged_lpips(objective.perceptual)
    if kind == "KL-VAE":
        theirs = {"diffusers": lambda: diffusers_kl_steps(*networks, package, images)}
    else:
        taming = with_taming_blocks(autoencoder)
        trunk = copy.deepcopy(objective.perceptual.slices).requires_grad_()
        losses = with_perceptual(objective, package)
        theirs = {
            "taming": lambda: (
                taming_step(taming, discriminator, losses, images),
                taming.zero_grad(set_to_none=True),
            ),
            "diffusers": lambda: (diffusers_vqgan_steps(*networks, trunk, images), trunk.zero_grad()),
        }
    return Bench(autoencoder, discriminator, objective, images, theirs | own)


def with_perceptual(objective: ReconstructionObjective, perceptual: nn.Module) -> ReconstructionObjective:
    """The objective with another perceptual loss in the place of its own."""
    changed = copy.copy(objective)
    changed._modules = {**objective._modules, "perceptual": perceptual}
    return changed


def _config(kind: str, overrides: list[str]) -> RunConfig:
    settings = [*SETTINGS, *overrides]
    if kind == "KL-VAE":
        return load_config("kl_vae", ["--config", "kl_f8", *settings])
    return load_config("vqgan", ["--config", "quickstart", *settings])


def _memory(kind: str, name: str, arguments: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--memory-of", kind, name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*command, *arguments.overrides], capture_output=True, text=True, env=environment, cwd=Path.cwd()
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name!r} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else hardware()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["VQGAN", "KL-VAE"], choices=["VQGAN", "KL-VAE"])
    parser.add_argument("--steps", nargs="+", help="these formulations alone, by their names in the table")
    parser.add_argument("--memory-of", nargs=2, metavar=("KIND", "STEP"), help="measure this alone")
    parser.add_argument("overrides", nargs="*", help="key=value, as in training")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
