"""Real runs struck by faults, continued, and compared with a run that was left alone.

`python benchmarks/faults.py [--kills N] [--steps N] [--only WORD ...] [--out FILE]` prints a table in
Markdown. The runs are the quickstart's model on files of the built-in photographs, in processes of their own,
one thread each, on the CPU. What was lost is what the last checkpoint, the model and the log of the continued
run lack, or have otherwise than those of the run that was left alone: every tensor, bit by bit. A full disk
needs the permission to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_comparison import newest_checkpoint
from fault_runs import EVERY, Bench, kill_group
from machine import commit, hardware

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


Row = tuple[str, str, str]
Fault = Callable[[Bench], Iterator[Row]]


def place(run: Path, log_before: int) -> str:
    """Where in its course a run was killed, from what it left."""
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
    """``kill -9`` of the whole group at uniformly random times, again and again until the run is done."""
    places: dict[str, int] = {}
    verdicts, runs, kills = [], 0, 0
    while kills < number:
        name = f"killed_{runs}"
        run, runs = bench.root / name, runs + 1
        while kills < number:
            metrics = run / "metrics.jsonl"
            before = metrics.stat().st_size if metrics.exists() else 0
            process = bench.start(name)
            # A fifth of them anywhere, the others after the start, which would take most of them.
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
    """SIGTERM, SIGINT, SIGUSR1 to the whole group, the loader's workers too."""
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
    """The newest checkpoint truncated, with a flipped bit, without a file."""

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
    """A disk that is full during the second checkpoint, and has room again later."""
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
    """A loss that is NaN in step 10, in a run that is also killed two steps later and continued."""
    program = ("-c", _NAN_RUN)
    printed = bench.finish("nan", program=program)
    lines = [json.loads(line) for line in (bench.root / "nan" / "metrics.jsonl").read_text().splitlines()]
    odd = [line["step"] for line in lines if "NaN" in json.dumps(line) or "Infinity" in json.dumps(line)]
    said = next((line for line in printed.splitlines() if "step 10 skipped" in line), "nothing said")
    lost = _killed_and_continued(bench, "nan", program=program)
    happened = f"{said.split(':')[0]}; {lines[-1]['step']} steps done, lines with a NaN: {odd or 'none'}"
    yield "loss NaN in one step", happened, f"{lines[-1]['skipped_steps']} update; killed later: {lost}"


def broken_images(bench: Bench) -> Iterator[Row]:
    """Files that are truncated, empty, or no images, in a run that is also killed and continued."""
    folder = bench.root / "broken_images"
    shutil.copytree(bench.images, folder)
    os.truncate(folder / "003.png", (folder / "003.png").stat().st_size // 2)
    (folder / "004.png").write_bytes(b"")
    (folder / "005.png").write_text("no image at all")
    data = f"data.name={folder}"
    printed = bench.finish("broken", data)
    said = next((line for line in printed.splitlines() if "cannot be read" in line), "nothing said")
    named = sorted(set(re.findall(r"(?<!\d)\d{3}\.png", printed)))
    lost = _killed_and_continued(bench, "broken", data)
    happened = f"{said.strip().rstrip(':')}: {', '.join(named)}"
    yield "images truncated, empty, mislabelled", happened, f"{len(named)} images; killed later: {lost}"


def _killed_and_continued(bench: Bench, whole: str, *changes: str, **options: Any) -> str:
    """What a run like another one lacks after a ``kill -9`` in its twelfth step."""
    name = f"{whole}_killed"
    process = bench.start(name, *changes, **options)
    bench.wait_for_step(name, 12, process)
    kill_group(process)
    bench.finish(name, *changes, **options)
    return bench.lost(name, whole)


def main() -> None:
    arguments = _parse()
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
    lines = [
        f"{hardware()}, {len(os.sched_getaffinity(0))} cores, commit {commit()}, seed {arguments.seed}; "
        f"{arguments.steps} steps of 4 images of 64x64, a checkpoint every {EVERY} steps",
        "",
        "| fault | what happened | what was lost |",
        "| --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="faults_") as root:
        bench = Bench(Path(root), arguments.steps, arguments.seed)
        for name, fault in faults.items():
            if arguments.only and name not in arguments.only:
                continue
            for row in fault(bench):
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
                print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(["# Runs struck by faults", "", *lines]) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="random kills")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", nargs="*", help="kills, rank, signals, damage, disk, worker, nan, images")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
