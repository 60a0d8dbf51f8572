"""Compares the loss curves of two runs, for example to check that a faster step trains as well.

Prints, for each number that both runs logged, the median and the largest difference between the same steps,
and how much the first run's own number changes from one step to the next. Draws a panel for each number.
"""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

from measuring import benchmark_parser, print_head, print_row

from latentae.report.figures import paired_curves

Curves = dict[str, dict[int, float]]
"""Name to step to value."""

_NAMES = ("loss", "reconstruction", "perceptual", "generator", "discriminator", "codebook_usage")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("metrics", nargs=2, help="metrics.jsonl of two runs")
    parser.add_argument("--names", nargs="+", default=list(_NAMES), help="numbers to compare")
    parser.add_argument("--out", help="draw the curves into this PNG file")
    arguments = parser.parse_args()
    first, second = (read_curves(Path(path)) for path in arguments.metrics)
    names = [name for name in arguments.names if name in first and name in second]
    print_head("number", "median difference", "largest", "from step to step, median")
    for name in names:
        print_row(name, *(f"{value:.2g}" for value in differences(first[name], second[name])))
    if arguments.out:
        paired_curves({name: (first[name], second[name]) for name in names}).save(arguments.out)


def read_curves(path: Path) -> Curves:
    """Reads the numbers of a run's metrics.jsonl."""
    curves: Curves = {}
    for line in path.read_text().splitlines():
        numbers = json.loads(line)
        for name, value in numbers.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, {})[numbers["step"]] = value
    return curves


def differences(first: dict[int, float], second: dict[int, float]) -> tuple[float, float, float]:
    """Returns median and largest difference over the common steps, and the first's median change per step."""
    steps = sorted(first.keys() & second.keys())
    apart = [abs(first[step] - second[step]) for step in steps]
    moves = [abs(first[a] - first[b]) for a, b in itertools.pairwise(steps)]
    return statistics.median(apart), max(apart), statistics.median(moves)


if __name__ == "__main__":
    main()
