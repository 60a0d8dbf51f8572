"""Compares our training step with those of other programs: time, operations and memory.

Prints one table for a VQGAN and one for a KL-VAE with the same layers. The steps (peers.py) take turns on the
same images. A ratio is the median over the rounds of process time (wall time on a GPU). Memory is measured in
a process of its own for each. By default the networks are taming-transformers' VQGAN at half its width, LPIPS
on VGG16 and its PatchGAN, on 4 images of 128x128; key=value overrides change them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import (
    FlopCount,
    benchmark_parser,
    convolution_rate,
    default_device,
    describe_run,
    in_fresh_process,
    in_turns,
    peak_memory,
    print_head,
    print_row,
    ratios,
    show_ratio,
)
from peers import (
    diffusers_kl_steps,
    diffusers_vqgan_steps,
    packaged_lpips,
    taming_step,
    with_taming_blocks,
)
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
_TOO_NOISY = 0.15  # range of the ratios over their median


@dataclass
class Bench:
    """The networks of one kind, and the step of each program on them."""

    autoencoder: nn.Module
    discriminator: nn.Module
    objective: ReconstructionObjective
    images: Tensor
    steps: dict[str, Callable[[], None]]

    def run(self, name: str) -> Callable[[], None]:
        """Returns a step that clears the gradients afterwards."""

        def step() -> None:
            self.steps[name]()
            for network in (self.autoencoder, self.discriminator, self.objective):
                network.zero_grad(set_to_none=True)

        return step


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    device = default_device()
    if arguments.memory_of:
        kind, name = arguments.memory_of
        run = _bench(kind, arguments.overrides, device).run(name)
        run()
        print(peak_memory(run, device))
        return
    rate = convolution_rate(device)
    print(f"{describe_run(device)}\nConvolutions alone reach {rate / 1e9:.0f} GFLOP/s.\n")
    for kind in arguments.kinds:
        _table(kind, arguments, device, rate)


def _table(kind: str, arguments: argparse.Namespace, device: torch.device, rate: float) -> None:
    # Count, time, and measure the memory of each step.
    bench = _bench(kind, arguments.overrides, device)
    names = [name for name in bench.steps if not arguments.steps or name in arguments.steps]
    operations = {}
    for name in names:
        with FlopCount() as count:
            bench.run(name)()
        operations[name] = count.total
    measured = in_turns({name: bench.run(name) for name in names}, arguments.rounds, device)
    words = (*arguments.overrides, f"--threads={arguments.threads}", "--memory-of", kind)
    peaks = {name: in_fresh_process(__file__, *words, name) for name in names}
    rate_now = max(rate, convolution_rate(device))

    # Print a row per step, with its ratio to each of the other programs.
    shape = "x".join(str(side) for side in bench.images.shape[2:])
    print(f"{kind}: {len(bench.images)} images of {shape}, an update of each; {arguments.rounds} rounds\n")
    others = [name for name in names if not name.startswith("ours")]
    columns = ["step", "s", "GFLOP", "of the convolutions' rate", "peak MiB"]
    print_head(*columns, *(f"{other} / it" for other in others))
    for name in names:
        spent = sorted(measured[name])[len(measured[name]) // 2]
        print_row(
            name,
            f"{spent:.2f}",
            f"{operations[name] / 1e9:.0f}",
            f"{operations[name] / spent / rate_now:.0%}",
            f"{peaks[name]:.0f}",
            *(show_ratio(measured[other], measured[name]) for other in others),
        )
    against = [ratios(measured[other], measured[names[-1]]) for other in others]
    noisy = any(high - low > _TOO_NOISY * middle for middle, low, high in against)
    print("\nThe ratios vary too much: run it again on a quieter machine.\n" if noisy else "")


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

    winograd = build.build_lpips("vgg", "float32").to(device)
    winograd.use_winograd()
    own = {
        "ours, stock blocks": ours(autoencoder, None),
        "ours, lean blocks": ours(lean, None),
        "ours, lean blocks, LPIPS in chunks": ours(lean, chunk),
        "ours, lean blocks, LPIPS in chunks by Winograd": ours(lean, chunk, winograd),
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
    """Returns the objective with another perceptual loss."""
    changed = copy.copy(objective)
    changed._modules = {**objective._modules, "perceptual": perceptual}
    return changed


def _config(kind: str, overrides: list[str]) -> RunConfig:
    settings = [*SETTINGS, *overrides]
    if kind == "KL-VAE":
        return load_config("kl_vae", ["--config", "kl_f8", *settings])
    return load_config("vqgan", ["--config", "quickstart", *settings])


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=7, threads=1)
    parser.add_argument(
        "--kinds", nargs="+", default=["VQGAN", "KL-VAE"], choices=["VQGAN", "KL-VAE"], help="tables to print"
    )
    parser.add_argument("--steps", nargs="+", help="these steps only, by their names in the table")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("KIND", "STEP"), help="print the memory of this step"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as in training")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
