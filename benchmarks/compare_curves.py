"""Two runs' loss curves on top of each other: whether a change of speed has changed the training.

`python benchmarks/compare_curves.py RUN/metrics.jsonl OTHER/metrics.jsonl --out curves.png` prints a table:
of each number that both runs logged, the median and the largest difference between the same steps, beside how
much the first run's own number moves from one step to the next. The picture has a panel a number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

from latentae.report.figures import paired_curves

Curves = dict[str, dict[int, float]]
"""Name to step to value."""

_NAMES = ("loss", "reconstruction", "perceptual", "generator", "discriminator", "codebook_usage")


def main() -> None:
    arguments = _parse()
    first, second = (read_curves(Path(path)) for path in arguments.metrics)
    names = [name for name in arguments.names if name in first and name in second]
    print("| number | median difference | largest | from step to step, median |\n| --- | --- | --- | --- |")
    for name in names:
        middle, largest, moves = differences(first[name], second[name])
        print(f"| {name} | {middle:.2g} | {largest:.2g} | {moves:.2g} |")
    if arguments.out:
        paired_curves({name: (first[name], second[name]) for name in names}).save(arguments.out)


def read_curves(path: Path) -> Curves:
    """The numbers of a run's metrics.jsonl."""
    curves: Curves = {}
    for line in path.read_text().splitlines():
        numbers = json.loads(line)
        for name, value in numbers.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, {})[numbers["step"]] = value
    return curves


def differences(first: dict[int, float], second: dict[int, float]) -> tuple[float, float, float]:
    """Median and largest difference at the steps that both have, and the median move of the first."""
    steps = sorted(first.keys() & second.keys())
    apart = [abs(first[step] - second[step]) for step in steps]
    moves = [abs(first[a] - first[b]) for a, b in itertools.pairwise(steps)]
    return statistics.median(apart), max(apart), statistics.median(moves)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metrics", nargs=2, help="a run's metrics.jsonl, twice")
    parser.add_argument("--names", nargs="+", default=list(_NAMES))
    parser.add_argument("--out", help="the picture, a PNG")
    return parser.parse_args()


if __name__ == "__main__":
    main()
