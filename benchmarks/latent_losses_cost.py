"""What each loss of the latents costs: time and memory of a training step, against one without.

`python benchmarks/latent_losses_cost.py [--rounds N] [key=value ...]` prints a table in Markdown for
quickstart_kl, with whatever overrides are given. Steps take turns and are counted in process time on a CPU.
An equivariant step's time depends on what it draws: the mean over the rounds is what counts there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import chain

import torch
from machine import commit, hardware
from measuring import in_turns

from latentae.config import load_config
from latentae.training.dry_run import measure_memory
from latentae.training.log import Meter
from latentae.training.trainer import Trainer

BLOCKS = {
    "none": [],
    "equivariance": ["loss.equivariance={}"],
    "latent noise": ["loss.latent_noise={scale: 0.1}"],
    "spectral": ["loss.spectral={}"],
    "alignment, adaptive": ["loss.alignment={network: vgg16}"],
    "alignment, fixed weight": ["loss.alignment={network: vgg16, adaptive: false}"],
}
# The smallest images of 64 pixels are too small for AlexNet's LPIPS.
SHARED = ["loss.perceptual.trunk=vgg", "trackers=[]", "max_steps=100000"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="steps of each")
    arguments, overrides = parser.parse_known_args()
    runs, memory = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in BLOCKS.items():
            words = [*SHARED, *overrides, *changes, f"output_dir={folder}/run"]
            trainer = Trainer(load_config("kl_vae", words), rehearsal=True)
            batches = trainer.batches()
            first = next(batches)
            memory[name] = measure_memory(trainer, chain([first], batches))
            runs[name] = _step(trainer, batches)
        seconds = in_turns(runs, arguments.rounds, torch.device("cpu"))
    without, least = statistics.mean(seconds["none"]), memory["none"]
    print(f"{hardware()}, {commit()}\n\n| | time of a step | kept for the backward pass | frozen networks |")
    print("| --- | --- | --- | --- |")
    for name, spent in seconds.items():
        time, use = statistics.mean(spent) / without, memory[name]
        kept = use.activations / least.activations
        print(f"| {name} | {time:.2f} | {kept:.2f} | {use.losses / 1e6:.0f} MB |")
    print(f"\nWithout: {without:.3g} s of process time, {least.activations / 1e6:.0f} MB.")


def _step(trainer: Trainer, batches):
    meter = Meter()

    def run() -> None:
        trainer.optimizer_step(batches, meter)

    return run


if __name__ == "__main__":
    main()
