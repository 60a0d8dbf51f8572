"""Interrupts real training runs, resumes them, and compares them with an undisturbed run.

The runs train the quickstart model on files of the built-in photographs. Each is a process of its own on the
CPU, with one thread. The last column of the table compares the last checkpoint, the exported model and the
log of the resumed run with those of the undisturbed run: every tensor, bit by bit. Filling a disk needs the
permission to mount a tmpfs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, benchmark_parser, commit, hardware, print_head, print_row
from PIL import Image
from safetensors.torch import load_file

from latentae.data.photos import training_photos

EVERY = 4  # steps between checkpoints
_CLOCK = frozenset({"images_per_second"})  # differs from run to run

_NAN_RUN = """
import sys
from latentae.config import load_config
from latentae.training.trainer import Trainer
trainer = Trainer(load_config("vqgan", sys.argv[1:]))
loss = trainer.networks.step.objective.reconstruction
def poisoned(reconstruction, images):
    return loss(reconstruction, images) * (float("nan") if trainer.step == 9 else 1.0)
trainer.networks.step.objective.reconstruction = poisoned
trainer.fit()
"""


# --- runs


class Bench:
    """A folder with images, an undisturbed run, and what starts other runs like it.

    Attributes:
        root: the folder of the images and of all runs.
        steps: optimizer steps of each run.
        random: draws the moments of the kills.
        seconds: how long the undisturbed run took.
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
        """Starts a run in ``root / name``, as a process group of its own."""
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
        """Starts a run, waits for its end, and returns what it printed."""
        process = self.start(name, *changes, **options)
        printed, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"the run ended with {process.returncode}:\n{printed[-3000:]}")
        return printed

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        """Waits until the log has a line for the step."""
        metrics = self.root / name / "metrics.jsonl"
        while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
            if process.poll() is not None:
                raise RuntimeError(
                    f"the run ended with {process.returncode}:\n{process.stdout.read()[-3000:]}"
                )
            time.sleep(0.05)

    def lost(self, name: str, whole: str = "whole") -> str:
        """Compares a run with the undisturbed one."""
        return difference(self.root / whole, self.root / name)

    def kill_and_resume(self, whole: str, *changes: str, **options: Any) -> str:
        """Kills a run like ``whole`` in its twelfth step, resumes it, and compares the two."""
        name = f"{whole}_killed"
        process = self.start(name, *changes, **options)
        self.wait_for_step(name, 12, process)
        kill_group(process)
        self.finish(name, *changes, **options)
        return self.lost(name, whole)


def draw_images(folder: Path, side: int = 160, count: int = 36) -> None:
    """Writes crops of the built-in photographs as PNG files."""
    folder.mkdir(parents=True)
    photos = training_photos()
    dice = random.Random(0)
    for number in range(count):
        photo = Image.fromarray(photos.load(number % len(photos), 3))
        left, top = (dice.randrange(extent - side) for extent in photo.size)
        photo.crop((left, top, left + side, top + side)).save(folder / f"{number:03d}.png")


def kill_group(process: subprocess.Popen) -> None:
    """Sends SIGKILL to a run and all of its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# --- comparison


def newest_checkpoint(run: Path) -> Path:
    """Returns the complete checkpoint with the highest step."""
    found = [
        path for path in (run / "checkpoints").glob("step_*") if path.name.removeprefix("step_").isdigit()
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("step_")))


def difference(whole: Path, run: Path) -> str:
    """Returns the first difference between two runs, or "nothing" and the number of values compared."""
    expected, found = (dict(_leaves(_states(newest_checkpoint(path)))) for path in (whole, run))
    if newest_checkpoint(whole).name != newest_checkpoint(run).name or expected.keys() != found.keys():
        return "the last checkpoint is of another step or shape"
    for name, value in expected.items():
        if not _equal(value, found[name]):
            return f"{name} differs"
    model = "model/diffusion_pytorch_model.safetensors"
    if (whole / model).read_bytes() != (run / model).read_bytes():
        return "the exported model differs"
    if _log(whole) != _log(run):
        return "the log differs"
    return f"nothing: {len(expected)} tensors and numbers, the model and the log are equal bit by bit"


def _states(checkpoint: Path) -> dict[str, Any]:
    states: dict[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            states[path.name] = load_file(path)
        elif path.suffix not in (".json", ".yaml"):
            states[path.name] = torch.load(path, weights_only=False)
    return states


def _leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, dict | list | tuple):
            yield from _leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first.tobytes() == second.tobytes() if hasattr(first, "tobytes") else first == second)


def _log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]


# --- faults


Row = tuple[str, str, str]
Fault = Callable[[Bench], Iterator[Row]]


def place(run: Path, log_before: int) -> str:
    """Tells from the files of a killed run what it was doing."""
    if not run.exists() or not (run / "config.yaml").exists():
        return "before it began"
    if any(run.glob(".model.*")) or ((run / "model").exists() and not (run / "summary.json").exists()):
        return "in the export"
    if any((run / "checkpoints").glob(".step_*")):
        return "in a checkpoint"
    metrics = run / "metrics.jsonl"
    if not metrics.exists() or metrics.stat().st_size == log_before:
        return "while starting"
    return "in a step"


def random_kills(bench: Bench, number: int) -> Iterator[Row]:
    """``kill -9`` of the whole process group at random times, repeated until the run is done."""
    places: dict[str, int] = {}
    verdicts, runs, kills = [], 0, 0
    while kills < number:
        name = f"killed_{runs}"
        run, runs = bench.root / name, runs + 1
        while kills < number:
            metrics = run / "metrics.jsonl"
            before = metrics.stat().st_size if metrics.exists() else 0
            process = bench.start(name)
            # One kill in five may come at any time; the others after the start, which takes most of the time.
            if bench.random.random() > 0.2:
                while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
                    time.sleep(0.02)
            try:
                process.wait(bench.random.uniform(0, 0.3) * bench.seconds)
                if process.returncode == 0:
                    break
                raise RuntimeError(
                    f"the run ended with {process.returncode}:\n{process.stdout.read()[-3000:]}"
                )
            except subprocess.TimeoutExpired:
                kill_group(process)
                kills += 1
                where = place(run, before)
                places[where] = places.get(where, 0) + 1
        bench.finish(name)
        verdicts.append(bench.lost(name))
    where = ", ".join(f"{count} {name}" for name, count in sorted(places.items()))
    lost = "; ".join(sorted(set(verdicts)))
    yield f"`kill -9`, {kills} times at random moments", f"{where}; {runs} runs in all", lost


def one_rank_killed(bench: Bench) -> Iterator[Row]:
    """``kill -9`` of one of two ranks."""
    bench.finish("two", "batch_size=2", processes=2)
    process = bench.start("two_killed", "batch_size=2", processes=2)
    bench.wait_for_step("two_killed", 6, process)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    ranks = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    os.kill(ranks[-1], signal.SIGKILL)
    process.communicate()
    bench.finish("two_killed", "batch_size=2", processes=2)
    yield (
        "`kill -9` of one of two ranks",
        f"torchrun ended with {process.returncode}",
        bench.lost("two_killed", "two"),
    )


def asked_to_leave(bench: Bench) -> Iterator[Row]:
    """SIGTERM, SIGINT and SIGUSR1 to the whole process group, including the loader's workers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        name = number.name
        process = bench.start(name)
        bench.wait_for_step(name, 5, process)
        time.sleep(bench.random.uniform(0, 2))
        asked = time.perf_counter()
        os.killpg(process.pid, number)
        printed, _ = process.communicate()
        seconds = time.perf_counter() - asked
        saved = re.findall(r"is saved at step (\d+)", printed)
        bench.finish(name)
        done = (
            f"code {process.returncode} after {seconds:.1f} s, saved at step {saved[-1] if saved else 'none'}"
        )
        yield f"{name} in a step", done, bench.lost(name)


def damaged_checkpoints(bench: Bench) -> Iterator[Row]:
    """The newest checkpoint is truncated, has a flipped bit, or lacks a file."""

    def truncate(file: Path) -> None:
        os.truncate(file, file.stat().st_size // 2)

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    ways = {"truncated": truncate, "with a flipped bit": flip, "missing": Path.unlink}
    for number, (way, damage) in enumerate(ways.items()):
        name = f"damaged_{number}"
        process = bench.start(name)
        bench.wait_for_step(name, 2 * EVERY + 2, process)
        kill_group(process)
        newest = newest_checkpoint(bench.root / name)
        damage(newest / "model.safetensors")
        printed = bench.finish(name)
        said = next((line for line in printed.splitlines() if "is damaged" in line), "nothing said")
        said = said.replace(f"{bench.root / name}/", "")
        yield f"newest checkpoint {way}", said, bench.lost(name)


def full_disk(bench: Bench) -> Iterator[Row]:
    """The disk is full during the second checkpoint and has room again later."""
    disk = bench.root / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in newest_checkpoint(bench.whole).iterdir())
    room = f"size={int(1.6 * size)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", room, "none", disk], capture_output=True).returncode:
        yield "disk full while saving", "not tried: no permission to mount a tmpfs", ""
        return
    try:
        process = bench.start("disk/run")
        printed, _ = process.communicate()
        said = next((line for line in printed.splitlines() if "cannot write" in line), "nothing said")
        said = re.sub(r"\S*/disk/run/", "", said).removeprefix("error: ")
        kept = newest_checkpoint(disk / "run").name
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", disk], check=True)
        bench.finish("disk/run")
        yield (
            "disk full while saving",
            f"code {process.returncode}: {said}; {kept} stood",
            bench.lost("disk/run"),
        )
    finally:
        subprocess.run(["umount", disk], check=False)


def worker_killed(bench: Bench) -> Iterator[Row]:
    """``kill -9`` of the process that loads images, as the system does when memory runs out."""
    process = bench.start("worker")
    bench.wait_for_step("worker", 6, process)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    for child in [int(pid) for task in tasks for pid in (task / "children").read_text().split()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    printed, _ = process.communicate()
    said = next((line for line in printed.splitlines() if "that loads images" in line), "nothing said")
    said = said.removeprefix("error: ").split(". If")[0].replace(f"{bench.images}/", "")
    bench.finish("worker")
    yield "loader's worker killed", f"code {process.returncode}: {said}", bench.lost("worker")


def not_a_number(bench: Bench) -> Iterator[Row]:
    """A loss that is NaN in step 10, in a run that is then killed two steps later and resumed."""
    program = ("-c", _NAN_RUN)
    printed = bench.finish("nan", program=program)
    lines = [json.loads(line) for line in (bench.root / "nan" / "metrics.jsonl").read_text().splitlines()]
    odd = [line["step"] for line in lines if "NaN" in json.dumps(line) or "Infinity" in json.dumps(line)]
    said = next((line for line in printed.splitlines() if "step 10 skipped" in line), "nothing said")
    lost = bench.kill_and_resume("nan", program=program)
    happened = f"{said.split(':')[0]}; {lines[-1]['step']} steps done, lines with a NaN: {odd or 'none'}"
    yield "loss NaN in one step", happened, f"{lines[-1]['skipped_steps']} update; killed later: {lost}"


def broken_images(bench: Bench) -> Iterator[Row]:
    """Files that are truncated, empty or not images, in a run that is then killed and resumed."""
    folder = bench.root / "broken_images"
    shutil.copytree(bench.images, folder)
    os.truncate(folder / "003.png", (folder / "003.png").stat().st_size // 2)
    (folder / "004.png").write_bytes(b"")
    (folder / "005.png").write_text("no image at all")
    data = f"data.name={folder}"
    printed = bench.finish("broken", data)
    said = next((line for line in printed.splitlines() if "cannot be read" in line), "nothing said")
    named = sorted(set(re.findall(r"(?<!\d)\d{3}\.png", printed)))
    lost = bench.kill_and_resume("broken", data)
    happened = f"{said.strip().rstrip(':')}: {', '.join(named)}"
    yield "images truncated, empty, mislabelled", happened, f"{len(named)} images; killed later: {lost}"


def main() -> None:
    faults: dict[str, Fault] = {
        "kills": lambda bench: random_kills(bench, arguments.kills),
        "rank": one_rank_killed,
        "signals": asked_to_leave,
        "damage": damaged_checkpoints,
        "disk": full_disk,
        "worker": worker_killed,
        "nan": not_a_number,
        "images": broken_images,
    }
    parser = benchmark_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of random kills")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--only", nargs="+", choices=list(faults), help="run these faults only")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    arguments = parser.parse_args()
    heading = (
        f"{hardware()}, {len(os.sched_getaffinity(0))} cores, commit {commit()}, seed {arguments.seed}; "
        f"{arguments.steps} steps of 4 images of 64x64, a checkpoint every {EVERY} steps\n"
    )
    print(heading)
    columns = ("fault", "what happened", "what was lost")
    print_head(*columns, numbers=False)
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults_") as root:
        bench = Bench(Path(root), arguments.steps, arguments.seed)
        for name in arguments.only or faults:
            for row in faults[name](bench):
                rows.append(row)
                print_row(*row)
    if arguments.out is not None:
        with arguments.out.open("w") as file, contextlib.redirect_stdout(file):
            print("# Runs struck by faults\n")
            print(heading)
            print_head(*columns, numbers=False)
            for row in rows:
                print_row(*row)


if __name__ == "__main__":
    main()
