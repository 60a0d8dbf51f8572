"""Trains autoencoders by our recipes and those of other programs, with equal processor time or equal steps.

Backbone, discriminator, images, their order, crops and batch size are the same for all, and a function of the
seed and the step. First all competitors take turns for some steps, which gives the seconds of a step of each.
The budget divided by these seconds is the number of steps. So other programs on the machine do not decide the
race, and a schedule can end with its run. The clock is process time of the steps; validation is not counted.

Every run is a JSON file in OUT, with its curve. A run that was interrupted continues from its last point of
the curve, and a finished one is not repeated. With --tune each of --rates is tried for a share of the budget,
and the one with the best PSNR on the validation images gets a full run (LPIPS rises before it falls).
--report prints the tables of the runs that are there and draws their curves. One table shows what needs no
training: mean colours, and images made small and enlarged again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import benchmark_parser, commit, describe_run, hardware, print_head, print_row
from peers_training import PEERS
from race_competitors import ABLATIONS, COMPETITORS, OURS, Setting, create, open_batches, open_validation
from race_report import (
    FLOORS,
    Evaluator,
    Floor,
    best_of_each,
    draw_curves,
    group,
    print_changes,
    print_floors,
    print_rows,
    read_runs,
    stack_pictures,
)
from torch import Tensor

from latentae.evaluation.metrics import to_images, to_uint8
from latentae.files import write_json, written_aside
from latentae.report.grids import picture_grid, save_png

_WARM_UP = 2  # steps that are not timed


class Race:
    """The runs of a folder.

    Args:
        arguments: the script's options.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.setting = Setting(arguments.train or "photos", tuple(arguments.changes))
        config = self.setting.config(OURS["kl"], 1, 0)
        measured = open_validation(config, arguments.validation)
        images = [measured[0, index]["images"] for index in range(len(measured))]
        self.evaluator = Evaluator(torch.stack(images))
        self._save_pictures(to_uint8(self.evaluator.shown), self.out / "originals.png")
        self._measure_floors()

    def steps_of(self, name: str, seconds: float) -> int:
        """Returns how many steps a competitor makes in so many seconds."""
        return max(1, round(seconds / self._costs()[name]))

    def measure_costs(self, names: list[str]) -> None:
        """Measures the seconds of a step of those names that have none yet. They take turns."""
        costs = self._costs()
        missing = [name for name in names if name not in costs]
        # The ratio to one competitor that is always measured links measurements of different times.
        turns = {name: self._start(name) for name in dict.fromkeys(["kl", *missing])} if missing else {}
        spent: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(self.arguments.cost_rounds):
            for name, (competitor, batches) in turns.items():
                batch = next(batches)
                began = time.process_time()
                competitor.step(batch)
                if number >= _WARM_UP:
                    spent[name].append(time.process_time() - began)
        means = {name: sum(times) / len(times) for name, times in spent.items()}
        scale = costs["kl"] / means["kl"] if "kl" in costs and means else 1.0
        costs |= {name: mean * scale for name, mean in means.items() if name not in costs}
        write_json(self.out / "costs.json", costs)

    def run(
        self, name: str, steps: int, seed: int, rate: float | None, budget: str, *, final: bool = True
    ) -> dict[str, Any]:
        """Makes a run, or continues it, or returns it if it is finished; ``final`` asks for all metrics."""
        word = re.sub(r"[^a-z0-9.]+", "-", f"{name} {rate or 'own'} {budget} {seed}".lower())
        path, state = self.out / f"run_{word}.json", self.out / f"state_{word}"
        run: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if run.get("final"):
            return run
        competitor, config = create(name, self.setting, steps=steps, seed=seed, rate=rate)
        done = 0
        # Killed between the state and the JSON file, a run starts again.
        if run and state.is_dir() and int((state / "step").read_text()) == run["curve"][-1]["step"]:
            competitor.load(state)
            done = run["curve"][-1]["step"]
        batches = open_batches(config, done)
        if not done:
            began = time.process_time()
            batches = competitor.begin(batches)
            run = {
                "competitor": name,
                "rate": rate,
                "learning_rate": competitor.learning_rate,
                "seed": seed,
                "steps": steps,
                "budget": budget,
                "file": path.stem,
                "hardware": hardware(),
                "commit": commit(),
                "seconds": time.process_time() - began,
                "curve": [],
            }
        points = sorted(
            {round(steps * (part + 1) / self.arguments.points) for part in range(self.arguments.points)}
        )
        for point in [point for point in points if point > done]:
            while done < point:
                batch = next(batches)
                began = time.process_time()
                competitor.step(batch)
                run["seconds"] += time.process_time() - began
                done += 1
            competitor.choose_weights(self.evaluator.images)
            seen = self.evaluator.measure_few(competitor)
            run["curve"].append({"step": done, "seconds": run["seconds"], **seen})
            self._save(competitor, run, path, state)
            print(f"{word}: step {done}, {run['seconds']:.0f} s, {seen}", file=sys.stderr, flush=True)
        run["final"], run["averaged"] = run["curve"][-1], competitor.averaged
        if final:
            run["final"], pictures = self.evaluator.measure(competitor, quick=self.arguments.quick)
            self._save_pictures(pictures, path.with_suffix(".png"))
        write_json(path, run)
        shutil.rmtree(state, ignore_errors=True)
        return run

    def tuned_rate(self, name: str, seconds: float) -> float:
        """Returns the best of the learning rates, each tried for a share of the budget."""
        share = self.arguments.tuning_share
        steps, results = self.steps_of(name, share * seconds), {}
        for rate in self.arguments.rates:
            run = self.run(name, steps, 0, rate, f"{share * seconds:.3g} s", final=share == 1)
            results[rate] = run["final"]["psnr"]
        return max(results, key=lambda rate: (math.isfinite(results[rate]), results[rate]))

    def _measure_floors(self) -> None:
        path = self.out / "floors.json"
        if not path.exists():
            quick = self.arguments.quick
            write_json(path, {name: self.evaluator.measure(Floor(name), quick=quick)[0] for name in FLOORS})

    def _save_pictures(self, pictures: Tensor, path: Path) -> None:
        """Writes 8-bit images [N, 3, H, W] as one row."""
        save_png(picture_grid(to_images(pictures)[None]), path)

    def _start(self, name: str) -> Any:
        rounds = self.arguments.cost_rounds
        competitor, config = create(name, self.setting, steps=rounds, seed=0)
        return competitor, competitor.begin(open_batches(config))

    def _costs(self) -> dict[str, float]:
        path = self.out / "costs.json"
        costs: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return costs

    def _save(self, competitor: Any, run: dict[str, Any], path: Path, state: Path) -> None:
        with written_aside(state) as folder:
            folder.mkdir()
            competitor.save(folder)
            (folder / "step").write_text(str(run["curve"][-1]["step"]))
        write_json(path, run)


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    names = arguments.only or [*PEERS, *OURS]
    seconds = 60 * arguments.minutes
    budget = f"{seconds:g} s" if arguments.steps is None else f"{arguments.steps} steps"
    if not arguments.report:
        race = Race(arguments)
        if arguments.steps is None or arguments.tune:
            race.measure_costs(names)
        for seed in arguments.seeds:
            for name in names:
                steps = arguments.steps or race.steps_of(name, seconds)
                rate = race.tuned_rate(name, seconds) if arguments.tune else None
                race.run(name, steps, seed, rate, budget)
    show(arguments.out, names, budget)


def show(out: Path, names: list[str], budget: str) -> None:
    """Prints the table of a budget's finished runs, draws their curves, and lists what each peer is."""
    runs = read_runs(out)
    rows = group(runs, [name for name in names if name not in ABLATIONS], budget)
    changed = group(runs, [name for name in names if name in ABLATIONS], budget)
    if not rows and not changed:
        print(f"no finished run of {budget} in {out}")
        return
    print(f"{describe_run()} Budget of each run: {budget}.\n")
    if rows:
        print_rows(rows)
        print()
        print_floors(json.loads((out / "floors.json").read_text()))
    if changed:
        print()
        print_changes(changed, group(runs, list(OURS), budget))
        rows = [*rows, *changed]
    word = budget.replace(" ", "_")
    drawn = best_of_each(rows)
    draw_curves(drawn, out / f"race_{word}.png")
    stack_pictures(out, drawn, out / f"race_{word}_images.png")
    peers = [name for name in names if name in PEERS]
    if peers:
        print()
        print_head("peer", "as published", "adapted", numbers=False)
        for name in peers:
            print_row(name, PEERS[name].KEPT, PEERS[name].ADAPTED)


def _parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--train", help="folder of training images; else the built-in photographs")
    parser.add_argument("--validation", help="folder of images to measure; else the built-in ones")
    parser.add_argument("--minutes", type=float, default=2.0, help="process time of each run")
    parser.add_argument("--steps", type=int, help="steps of each run instead of --minutes")
    parser.add_argument(
        "--only", nargs="+", choices=COMPETITORS, metavar="NAME", help=f"of {', '.join(COMPETITORS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    parser.add_argument("--tune", action="store_true", help="try --rates, and run the best")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="learning rates")
    parser.add_argument(
        "--tuning-share", type=float, default=1 / 3, help="share of the budget to try a rate; 1: full runs"
    )
    parser.add_argument("--points", type=int, default=6, help="points of each curve")
    parser.add_argument("--cost-rounds", type=int, default=12, help="steps that each makes to be timed")
    parser.add_argument("--quick", action="store_true", help="leave out the metrics that need VGG16")
    parser.add_argument("--report", action="store_true", help="only show what is there")
    parser.add_argument("--changes", nargs="+", default=[], help="key=value for all configs")
    arguments = parser.parse_args()
    if arguments.cost_rounds <= _WARM_UP:
        parser.error(f"--cost-rounds is {arguments.cost_rounds}: give {_WARM_UP + 1} or more")
    return arguments


if __name__ == "__main__":
    main()
