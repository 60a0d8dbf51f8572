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

from PIL import Image, ImageDraw

Curves = dict[str, dict[int, float]]
"""Name to step to value."""

_NAMES = ("loss", "reconstruction", "perceptual", "generator", "discriminator", "codebook_usage")
_COLOURS = ("#d55e00", "#0072b2")
_PANEL, _MARGIN = (520, 260), 40


def main() -> None:
    arguments = _parse()
    first, second = (read_curves(Path(path)) for path in arguments.metrics)
    names = [name for name in arguments.names if name in first and name in second]
    print("| number | median difference | largest | from step to step, median |\n| --- | --- | --- | --- |")
    for name in names:
        middle, largest, moves = differences(first[name], second[name])
        print(f"| {name} | {middle:.2g} | {largest:.2g} | {moves:.2g} |")
    if arguments.out:
        draw(names, first, second).save(arguments.out)


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


def draw(names: list[str], first: Curves, second: Curves) -> Image.Image:
    """A panel a number; the first run thick and orange, the second thin and blue on top of it."""
    width, height = _PANEL
    picture = Image.new("RGB", (2 * width, -(-len(names) // 2) * height), "white")
    pen = ImageDraw.Draw(picture)
    for number, name in enumerate(names):
        left, top = number % 2 * width, number // 2 * height
        values = [*first[name].values(), *second[name].values()]
        low, high, last = min(values), max(values), max(first[name])
        span = high - low or 1.0
        pen.text((left + _MARGIN, top + 8), f"{name}: {low:.3g} to {high:.3g}, {last} steps", fill="black")
        pen.rectangle((left + _MARGIN, top + 28, left + width - 10, top + height - 10), outline="#bbbbbb")
        for curve, colour, thickness in ((first[name], _COLOURS[0], 5), (second[name], _COLOURS[1], 1)):
            points = [
                (
                    left + _MARGIN + (width - _MARGIN - 10) * step / last,
                    top + height - 14 - (height - 46) * (value - low) / span,
                )
                for step, value in sorted(curve.items())
            ]
            pen.line(points, fill=colour, width=thickness)
    return picture


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
