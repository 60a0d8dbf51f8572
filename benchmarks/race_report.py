"""Measures the reconstructions of bench_race.py's competitors, and draws its tables, curves and pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import print_head, print_row
from peers_training import PEERS
from PIL import Image
from race_competitors import Reconstructor
from torch import Tensor

from latentae import build
from latentae.evaluation.distances import GaussianStatistics, frechet_distance
from latentae.evaluation.features import VGG16Features
from latentae.evaluation.metrics import psnr, ssim, to_images, to_uint8
from latentae.quantizers import code_counts, codebook_health
from latentae.report.figures import COLOURS, GRID, QUIET
from latentae.report.grids import label_rows, save_png

_BATCH = 16
_METRICS = {
    "psnr": ("PSNR, dB", ".2f"),
    "luma": ("of luma", ".2f"),
    "chroma": ("of chroma", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips_alex": ("LPIPS alex", ".3f"),
    "lpips_vgg": ("LPIPS vgg", ".3f"),
    "fd_vgg16": ("FD-VGG16", ".1f"),
    "codes": ("codes in use", ".1%"),
}
"""Key in the JSON -> column and number format."""
HIGHER_IS_BETTER = {"psnr", "luma", "chroma", "ssim", "codes"}
_BT601 = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Rows: Y', Cb and Cr of R', G' and B' (ITU-R BT.601)."""


class Evaluator:
    """Measures reconstructions of the same validation images.

    Args:
        images: [N, 3, H, W] in [-1, 1].
        few: about how many of them ``measure_few`` measures.
    """

    def __init__(self, images: Tensor, few: int = 64) -> None:
        self.images, self.few = images, few
        self.shown = images[:: max(1, len(images) // 8)][:8]
        self.alex = build.build_lpips("alex")

    def measure_few(self, competitor: Reconstructor) -> dict[str, float]:
        """Returns PSNR, SSIM and LPIPS on AlexNet of some images, evenly taken."""
        chosen = self.images[:: max(1, len(self.images) // self.few)]
        return self._measure(competitor, chosen)[0]

    def measure(self, competitor: Reconstructor, *, quick: bool = False) -> tuple[dict[str, float], Tensor]:
        """Returns the metrics of all images, and 8-bit reconstructions of those in ``shown``.

        Args:
            quick: leave out the metrics that need VGG16.
        """
        numbers, pixels, counts = self._measure(competitor, self.images)
        if counts is not None:
            numbers["codes"] = codebook_health(counts).usage
        if not quick:
            numbers |= self._measure_with_vgg(pixels)
        return numbers, to_uint8(competitor.reconstruct(self.shown)[0])

    def _measure_with_vgg(self, pixels: Tensor) -> dict[str, float]:
        vgg, features = build.build_lpips("vgg"), VGG16Features()
        originals, others = GaussianStatistics(features.dimensions), GaussianStatistics(features.dimensions)
        distances: list[Tensor] = []
        with torch.no_grad():
            for one, other in zip(pixels.split(_BATCH), to_uint8(self.images).split(_BATCH), strict=True):
                distances.append(vgg(to_images(one), to_images(other)))
                others.add(features(one))
                originals.add(features(other))
        return {
            "lpips_vgg": torch.cat(distances).mean().item(),
            "fd_vgg16": frechet_distance(originals, others),
        }

    def _measure(
        self, competitor: Reconstructor, images: Tensor
    ) -> tuple[dict[str, float], Tensor, Tensor | None]:
        values: dict[str, list[Tensor]] = {
            key: [] for key in ("psnr", "luma", "chroma", "ssim", "lpips_alex")
        }
        pixels, counts = [], None
        for batch in images.split(_BATCH):
            reconstruction, indices = competitor.reconstruct(batch)
            pixels.append(to_uint8(reconstruction))
            one, other = to_images(pixels[-1]), to_images(to_uint8(batch))
            values["psnr"].append(psnr(one, other))
            for key, ratio in zip(("luma", "chroma"), _psnr_of_luma_and_chroma(one, other), strict=True):
                values[key].append(ratio)
            values["ssim"].append(ssim(one, other))
            with torch.no_grad():
                values["lpips_alex"].append(self.alex(one, other))
            if indices is not None:
                seen = code_counts(indices, competitor.num_codes() or 0)
                counts = seen if counts is None else counts + seen
        means = {name: torch.cat(parts).double().mean().item() for name, parts in values.items()}
        return means, torch.cat(pixels), counts


def _psnr_of_luma_and_chroma(one: Tensor, other: Tensor) -> list[Tensor]:
    """Returns the PSNR [B] in dB of Y', and of Cb and Cr together, for images [B, 3, H, W] in [-1, 1].

    A mean squared error below 1e-6 of the squared range counts as 1e-6, so that equal channels have 60 dB.
    """
    difference = torch.einsum("kc,bchw->bkhw", torch.tensor(_BT601), (one - other) / 2)
    errors = [difference[:, :1], difference[:, 1:]]
    return [-10 * error.square().mean(dim=(1, 2, 3)).clamp(min=1e-6).log10() for error in errors]


class Floor:
    """A reconstruction that needs no training. Whatever has learned something is above it.

    Args:
        name: one of ``FLOORS``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def reconstruct(self, images: Tensor) -> tuple[Tensor, None]:
        """Returns the reconstruction of images [B, 3, H, W] in [-1, 1], and no codes."""
        return FLOORS[self.name](images).clamp(-1, 1), None

    def num_codes(self) -> None:
        """It has no codes."""


def _shrink(side: int) -> Callable[[Tensor], Tensor]:
    def shrink(images: Tensor) -> Tensor:
        small = F.interpolate(images, (side, side), mode="area")
        return F.interpolate(small, images.shape[-2:], mode="bicubic")

    return shrink


FLOORS: dict[str, Callable[[Tensor], Tensor]] = {
    "the mean colour of each image": lambda images: images.mean(dim=(2, 3), keepdim=True).expand_as(images),
    "the images without colour": lambda images: torch.einsum("c,bchw->bhw", torch.tensor(_BT601[0]), images)[
        :, None
    ].expand_as(images),
    "8x8 pixels, enlarged": _shrink(8),
    "16x16 pixels, enlarged": _shrink(16),
}
"""Name -> reconstruction of images in [-1, 1]."""


@dataclass(frozen=True)
class Row:
    """The finished runs of one competitor with one learning rate and about one budget, over seeds."""

    name: str
    setting: str
    runs: Sequence[dict[str, Any]]

    def values(self, key: str) -> list[float]:
        """Returns a metric of each run."""
        return [run["final"][key] for run in self.runs if key in run["final"]]

    def cell(self, key: str, form: str) -> str:
        """Returns the mean over seeds, with the range if there are several."""
        values = self.values(key)
        if not values:
            return "-"
        if len(values) == 1:
            return format(values[0], form)
        return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Returns the finished runs in a race's folder, by their names."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("run_*.json"))]
    return [run for run in runs if run.get("final")]


def group(runs: Sequence[dict[str, Any]], names: Sequence[str], budget: str) -> list[Row]:
    """Returns a row for each competitor and learning rate, in the order of the names.

    Args:
        budget: what the runs were made for: ``120 s`` or ``80 steps``.
    """
    rows = []
    for name in names:
        own = [run for run in runs if run["competitor"] == name and run["budget"] == budget]
        for rate in sorted({run["rate"] for run in own}, key=lambda rate: (rate is not None, rate or 0)):
            same = [run for run in own if run["rate"] == rate]
            rows.append(Row(name, _setting(name, rate), same))
    return rows


def _setting(name: str, rate: float | None) -> str:
    if rate is None:
        return "published" if name in PEERS else "shipped"
    return f"{rate:g}, cosine"


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """Returns one row per competitor: of those with most seeds that with the best mean PSNR."""
    best: dict[str, Row] = {}
    for row in rows:
        kept = best.setdefault(row.name, row)
        if _rank(row) > _rank(kept):
            best[row.name] = row
    return list(best.values())


def _rank(row: Row) -> tuple[int, float]:
    return len(row.runs), statistics.mean(row.values("psnr"))


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a Markdown table. The best mean of each metric is bold."""
    keys = [key for key in _METRICS if any(row.values(key) for row in rows)]
    best = {}
    for key in keys:
        means = [statistics.mean(row.values(key)) for row in rows if row.values(key)]
        best[key] = max(means) if key in HIGHER_IS_BETTER else min(means)
    print_head("competitor", "settings", "steps", "seeds", *(_METRICS[key][0] for key in keys))
    for row in rows:
        cells = []
        for key in keys:
            cell = row.cell(key, _METRICS[key][1])
            values = row.values(key)
            is_best = bool(values) and math.isclose(statistics.mean(values), best[key])
            cells.append(f"**{cell}**" if is_best else cell)
        own_rate = f", {row.runs[0]['learning_rate']:g}" if row.runs[0]["rate"] is None else ""
        averaged = sum(run["averaged"] for run in row.runs)
        weights = ", averaged" if averaged == len(row.runs) else f", averaged: {averaged} of {len(row.runs)}"
        setting = row.setting + own_rate + (weights if averaged else "")
        print_row(row.name, setting, row.runs[0]["steps"], len(row.runs), *cells)


def print_floors(floors: dict[str, dict[str, float]]) -> None:
    """Prints a Markdown table of the metrics of ``FLOORS``."""
    keys = [key for key in _METRICS if any(key in numbers for numbers in floors.values())]
    print_head("without training", *(_METRICS[key][0] for key in keys))
    for name, numbers in floors.items():
        print_row(name, *(format(numbers[key], _METRICS[key][1]) for key in keys))


def print_changes(rows: Sequence[Row], bases: Sequence[Row]) -> None:
    """Prints a Markdown table of configs with one change: metrics, and differences to the unchanged config.

    Args:
        rows: of changed configs, named ``base, change``.
        bases: the unchanged ones, with runs of the same seeds.
    """
    keys = [key for key in _METRICS if any(row.values(key) for row in rows)]
    print_head("change", "steps", "seeds", *(_METRICS[key][0] for key in keys))
    for row in rows:
        name = row.name.partition(",")[0]
        runs = [run for base in bases if base.name == name for run in base.runs]
        unchanged = {(run["seed"], run["rate"]): run["final"] for run in runs}
        pairs = [(run["final"], unchanged.get((run["seed"], run["rate"]), {})) for run in row.runs]
        cells = [_with_difference([pair for pair in pairs if key in pair[0]], key) for key in keys]
        print_row(row.name, row.runs[0]["steps"], len(pairs), *cells)


def _with_difference(pairs: Sequence[tuple[dict[str, float], dict[str, float]]], key: str) -> str:
    form = _METRICS[key][1]
    if not pairs:
        return "-"
    changed = statistics.mean(final[key] for final, _ in pairs)
    if not all(key in other for _, other in pairs):
        return format(changed, form)
    unchanged = statistics.mean(other[key] for _, other in pairs)
    return f"{changed:{form}} ({changed - unchanged:+{form}})"


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Writes PSNR and LPIPS against the share of the budget as a PNG: a line per row, ours solid."""
    figure = Figure((10, 5.2), dpi=80, layout="constrained")
    for axes, key, name in zip(
        figure.subplots(1, 2), ("psnr", "lpips_alex"), ("PSNR, dB", "LPIPS (alex)"), strict=True
    ):
        for number, row in enumerate(rows):
            curve = row.runs[0]["curve"]
            axes.plot(
                [point["step"] / row.runs[0]["steps"] for point in curve],
                [point[key] for point in curve],
                color=COLOURS[number % len(COLOURS)],
                linestyle="--" if row.name in PEERS else "-",
                marker=".",
                label=f"{row.name}, {row.setting}",
            )
        axes.set_xlabel(f"share of {row.runs[0]['budget']}", color=QUIET)
        axes.set_title(name, loc="left")
        axes.grid(color=GRID)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def stack_pictures(folder: Path, rows: Sequence[Row], path: Path) -> None:
    """Writes the originals and the reconstructions of each row's first run below each other as a PNG."""
    files = {"original": folder / "originals.png"}
    for row in rows:
        files[f"{row.name}, {row.setting}"] = folder / f"{row.runs[0]['file']}.png"
    files = {name: file for name, file in files.items() if file.exists()}
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files.values()]
    save_png(label_rows(np.concatenate(pictures), list(files)), path)
