"""What a checkpoint costs, and what a second rank brings.

`python benchmarks/checkpoint_cost.py [--configs NAME ...] [--rounds N]` prints two tables in Markdown:
seconds and bytes of a checkpoint, and the share of the time that saving takes at the default interval and at
the config's own; images per second of two ranks against one, the work of each rank the same, one thread each.
On the CPU: models other than the quickstarts' make steps of one image of 64x64, and their share is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from accelerate.state import AcceleratorState
from fault_runs import ROOT, kill_group
from machine import commit, hardware

from latentae.config import RunConfig, load_config
from latentae.training.log import Meter
from latentae.training.trainer import Trainer

_DEFAULT_INTERVAL = RunConfig.model_fields["checkpoint_every"].default
_SMALL_STEPS = ["batch_size=1", "data.image_size=64", "data.name=photos", "data.num_workers=0"]


def cost(name: str, family: str, folder: Path, rounds: int) -> str:
    """A row of the first table."""
    large = not name.startswith("quickstart")
    changes = [
        f"output_dir={folder / name}",
        "trackers=[]",
        "cpu_threads=1",
        *(_SMALL_STEPS if large else []),
    ]
    AcceleratorState._reset_state(reset_partial_state=True)  # of the config before
    trainer = Trainer(load_config(family, ["--config", name, *changes]))
    own_interval = trainer.config.checkpoint_every
    batches, meter = trainer.batches(), Meter()
    stepping, saving = [], []
    for _ in range(rounds + 1):  # the first makes the optimizer's state
        started = time.perf_counter()
        trainer.optimizer_step(batches, meter)
        between = time.perf_counter()
        trainer._save_checkpoint()
        stepping.append(between - started)
        saving.append(time.perf_counter() - between)
    step, save = (statistics.median(seconds[1:]) for seconds in (stepping, saving))
    size = sum(file.stat().st_size for file in trainer.folder.all_checkpoints()[-1].iterdir())
    parameters = sum(value.numel() for value in trainer.networks.autoencoder.parameters())
    shares = [
        "" if large else f"{save / (save + interval * step):.2%}"
        for interval in (_DEFAULT_INTERVAL, own_interval)
    ]
    spread = f"{min(saving[1:]):.2f} to {max(saving[1:]):.2f}"
    return (
        f"| `{name}` | {parameters / 1e6:.2f} M | {size / 2**20:.0f} MiB | {save:.2f} ({spread}) | "
        f"{'' if large else f'{step:.2f}'} | {shares[0]} | {shares[1]} ({own_interval}) |"
    )


def throughput(processes: int, folder: Path, steps: int = 25) -> float:
    """Images per second of all ranks, the median over the log's lines but the first."""
    run = folder / f"ranks_{processes}_{time.monotonic_ns()}"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    settings = [f"output_dir={run}", f"max_steps={steps}", "log_every=5", "cpu_threads=1", "trackers=[]"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "scripts/train_vqgan.py", *settings],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    while len(lines) < steps // 5:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode}:\n{process.stdout.read()[-3000:]}")
        time.sleep(0.2)
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    kill_group(process)
    return statistics.median(json.loads(line)["images_per_second"] for line in lines[1:])


def main() -> None:
    arguments = _parse()
    print(f"{hardware()}, {len(os.sched_getaffinity(0))} cores, commit {commit()}\n")
    print(
        "| config | parameters | on disk | a checkpoint, s (range) | a step, s | share at 1000 | at its own |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="checkpoints_") as folder:
        for name in arguments.configs:
            family = "kl_vae" if name.startswith("kl") else "vqgan"
            print(cost(name, family, Path(folder), arguments.rounds), flush=True)
        rounds = [[throughput(ranks, Path(folder)) for ranks in (1, 2)] for _ in range(arguments.rounds)]
    ratios = [two / one for one, two in rounds]
    one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
    print("\n| images/s of one rank | of two | ratio (range) |\n| --- | --- | --- |")
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {one:.1f} | {two:.1f} | {ratio} |")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["quickstart", "kl_f8"], help="of which to save")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of each, and pairs of runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
