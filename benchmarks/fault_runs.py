"""A folder with images, a run that was left alone, and the means to start others like it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fault_comparison import losses
from PIL import Image

from latentae.data.photos import training_photos

ROOT = Path(__file__).resolve().parents[1]
EVERY = 4  # steps between checkpoints


class Bench:
    """A folder with images, a run that was left alone, and the means to start others.

    Attributes:
        root: where everything lies.
        steps: of every run.
        random: of the moments.
    """

    def __init__(self, root: Path, steps: int, seed: int) -> None:
        self.root = root
        self.steps = steps
        self.random = random.Random(seed)
        self.images = root / "images"
        draw_images(self.images)
        started = time.perf_counter()
        self.whole = root / "whole"
        self.finish("whole")
        self.seconds = time.perf_counter() - started

    def start(
        self, name: str, *changes: str, processes: int = 1, program: tuple[str, ...] = ()
    ) -> subprocess.Popen:
        """A run in its own group of processes, in ``root / name`` or in an absolute path."""
        words = [sys.executable]
        if processes > 1:
            words += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words += program or ("scripts/train_vqgan.py",)
        settings = [
            f"output_dir={self.root / name}",
            f"data.name={self.images}",
            f"max_steps={self.steps}",
            f"checkpoint_every={EVERY}",
            *("batch_size=4", "cpu_threads=1", "log_every=1", "sample_every=100000", "data.num_workers=1"),
            *("loss.adversarial.start_step=8", "loss.adversarial.discriminator_warmup_steps=2"),
            *("validate_every=8", "best_metric=validation_psnr"),
        ]
        environment = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*words, *settings, *changes],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, name: str, *changes: str, **options: Any) -> str:
        """Runs to the end and returns what was printed."""
        process = self.start(name, *changes, **options)
        printed, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"the run ended with {process.returncode}:\n{printed[-3000:]}")
        return printed

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        """Until the log has a line of the step."""
        metrics = self.root / name / "metrics.jsonl"
        while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
            if process.poll() is not None:
                raise RuntimeError(
                    f"the run ended with {process.returncode}:\n{process.stdout.read()[-3000:]}"
                )
            time.sleep(0.05)

    def lost(self, name: str, whole: str = "whole") -> str:
        return losses(self.root / whole, self.root / name)


def draw_images(folder: Path, side: int = 160, count: int = 36) -> None:
    """Crops of the built-in photographs, as files."""
    folder.mkdir(parents=True)
    photos = training_photos()
    dice = random.Random(0)
    for number in range(count):
        photo = Image.fromarray(photos.load(number % len(photos), 3))
        left, top = (dice.randrange(extent - side) for extent in photo.size)
        photo.crop((left, top, left + side, top + side)).save(folder / f"{number:03d}.png")


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
