"""What the guide's figures share: the style, grids of images, PNG files, and the scripts' options."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from latentae.files import write_aside
from latentae.report.figures import COLOURS, STYLE
from latentae.report.grids import Picture, picture_grid

FOLDER = Path(__file__).parent
_DPI = 110
_STYLE = {
    **STYLE,
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": True,  # logarithmic axes write powers of ten by it
}
_PALETTE = 256


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished figure, and the numbers that the guide quotes from it."""

    figure: Figure
    numbers: Mapping[str, float]


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure on white paper, in the style of the project's charts; sizes in inches."""
    with rc_context(_STYLE):
        return Figure((width, height), dpi=_DPI, layout="constrained", facecolor="white")


def draw(function: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Makes a function draw in the style of the project's charts."""

    def styled(*arguments: Any, **options: Any) -> Drawing:
        with rc_context(_STYLE):
            return function(*arguments, **options)

    styled.__doc__ = function.__doc__
    return styled


def show_images(axes: Axes, images: Tensor, columns: int, title: str = "", border: int = 1) -> None:
    """Shows images [N, C, H, W] in [-1, 1] in rows of ``columns``; N is a multiple of ``columns``."""
    grid = picture_grid(images.unflatten(0, (-1, columns)), border)
    axes.imshow(grid, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, loc="left")
    for spine in axes.spines.values():
        spine.set_visible(False)


def from_pixels(picture: Picture) -> Figure:
    """Returns a finished picture [H, W, 3] as a figure of as many pixels."""
    height, width = picture.shape[:2]
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    return figure


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Writes a name at the left of each row of a grid of images."""
    low, high = sorted(axes.get_ylim())
    height = (high - low) / len(labels)
    axes.set_yticks([low + (row + 0.5) * height for row in range(len(labels))], labels)
    axes.tick_params(length=0)


def by_digit(axes: Axes, points: Tensor, labels: Tensor) -> None:
    """Draws 2-d latents [N, 2], coloured by their digits."""
    colours = [*COLOURS, "#000000", "#b3a100"]
    for digit in range(10):
        chosen = points[labels == digit]
        axes.scatter(*chosen.T, s=4, color=colours[digit], linewidths=0, label=str(digit))
    axes.set_aspect("equal", adjustable="datalim")


def save(drawing: Drawing, path: Path) -> None:
    """Writes a figure as a PNG of at most 256 colours, which keeps the file small."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        drawing.figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    write_aside(path, small.getvalue())


def main(doc: str | None, drawings: Mapping[str, Callable[..., Drawing]], *, with_runs: bool = False) -> None:
    """Draws the figures that a script makes, and prints their numbers.

    Args:
        doc: the script's docstring, which --help shows.
        drawings: name of the PNG file, without its ending -> a function of ``seed`` that draws it.
        with_runs: whether the functions need the folder of the training runs, as ``runs``.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the PNG files")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--only", choices=list(drawings), help="draw this figure alone")
    if with_runs:
        parser.add_argument(
            "--runs", type=Path, default=Path("run-guide"), help="folder of the trained models"
        )
    arguments = parser.parse_args()
    options = {"runs": arguments.runs} if with_runs else {}
    for name, make in drawings.items():
        if arguments.only in (None, name):
            torch.manual_seed(arguments.seed)
            started = time.process_time()
            drawing = make(seed=arguments.seed, **options)
            save(drawing, arguments.out / f"{name}.png")
            print(f"{name}: {time.process_time() - started:.0f} s of processor time", flush=True)
            for key, value in drawing.numbers.items():
                print(f"  {key} = {value:.4g}")
