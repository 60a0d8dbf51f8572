"""The training runs of the guide: small models on the built-in photographs, by latentae's own trainer.

A run that is complete is not repeated. One thread computes each, so that their numbers do not depend on the
machine's number of cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentae.config import load_config
from latentae.training.trainer import Trainer

NUM_CODES = 256
IMAGE_SIZE = 48
FACTOR = 4
STEPS = 500
POSITIONS = (IMAGE_SIZE // FACTOR) ** 2
NATS = POSITIONS * math.log(NUM_CODES)
"""What one image's codes cost at equal lengths. The KL-VAE gets the same."""


@dataclass(frozen=True)
class Run:
    """A run of the guide.

    Attributes:
        label: its name in figures.
        family: the training script's.
        changes: to the family's quickstart config, as on the command line.
        steps: all of them, relative to those of the other runs.
    """

    label: str
    family: str
    changes: tuple[str, ...]
    steps: float = 1.0


_VQ = f"model.quantizer.num_codes={NUM_CODES}"
RUNS = {
    "kl": Run(
        "KL-VAE",
        "kl_vae",
        (
            "loss.perceptual=null",
            "loss.kl.weight=0.5",
            f"loss.kl.free_bits={{nats: {NATS:.1f}, per: image}}",
        ),
    ),
    "vq": Run("VQ-VAE", "vq_vae", (_VQ, "loss.perceptual=null")),
    "perceptual": Run("+ perceptual loss", "vq_vae", (_VQ,)),
    "vqgan": Run("+ discriminator (VQGAN)", "vqgan", (_VQ, "loss.adversarial.weight=0.4")),
    "blown_up": Run(
        "weight 20 from step 0",
        "vqgan",
        (_VQ, "loss.adversarial.weight=20", "loss.adversarial.adaptive=false"),
        steps=0.25,
    ),
}


def train(folder: Path, name: str, seed: int = 0, steps: int = STEPS, changes: Sequence[str] = ()) -> Path:
    """Trains a run of RUNS, or continues it, and returns its folder.

    Args:
        folder: of all runs; each has a folder in it, named after the run and its seed.
        seed: of all random numbers.
        steps: of a run of length 1.
        changes: further ones, such as smaller networks for a test.
    """
    run = RUNS[name]
    own = folder / f"{name}-{seed}"
    if (own / "summary.json").is_file():
        return own
    length = max(1, round(run.steps * steps))
    start = 0 if name == "blown_up" else length // 2
    adversary = (
        f"loss.adversarial.start_step={start}",
        f"loss.adversarial.discriminator_warmup_steps={start // 6}",
    )
    settings = (
        f"output_dir={own}",
        f"seed={seed}",
        f"max_steps={length}",
        "model.block_out_channels=[32, 32, 64]",
        f"data.image_size={IMAGE_SIZE}",
        "cpu_threads=1",
        "trackers=[]",
        "log_every=10",
        "validate_every=50",
        "ema_decay=0.99",
    )
    config = load_config(
        run.family, [*settings, *run.changes, *(adversary if run.family == "vqgan" else ()), *changes]
    )
    Trainer(config).fit()
    return own


def read_log(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of one number in a run's metrics.jsonl; empty where it has none."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
