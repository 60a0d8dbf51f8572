"""The frame of a chart: two axes with ticks and names, and what is drawn between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from latentae.latents.inspection.figure import GRID, INK, QUIET, TEXT_SIZE, font, short_number, text_size

# Lines are drawn this many times larger and shrunk, since Pillow draws them with steps.
_FINER = 4

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        low, high: its ends; both positive where it is logarithmic.
        name: what it shows, and the unit.
        logarithmic: whether equal factors are equal lengths.
    """

    low: float
    high: float
    name: str
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at ``low`` and 1 at ``high``."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round numbers between the ends; of a logarithmic axis 1, 2, 5 or decades."""
        if self.logarithmic:
            return list(_logarithmic_ticks(self.low, self.high, count))
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


class Chart:
    """A chart on paper.

    Args:
        paper: what it is drawn on.
        box: left, top, right and bottom of the frame in pixels; names and ticks stand left of it and below.
        x, y: the axes.
        ticks: about how many along each.
        size: of the text.
    """

    def __init__(
        self,
        paper: Image.Image,
        box: tuple[int, int, int, int],
        x: Axis,
        y: Axis,
        *,
        ticks: tuple[int, int] = (6, 6),
        size: int = TEXT_SIZE,
    ) -> None:
        self.paper, self.box, self.x, self.y = paper, box, x, y
        self._draw = ImageDraw.Draw(paper)
        self._size = size
        self._frame(ticks)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value."""
        left, top, right, bottom = self.box
        return left + (right - left) * self.x.share(x), bottom - (bottom - top) * self.y.share(y)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: Colour, width: float = 2) -> None:
        """A line through points, cut off at the frame."""
        points = [self.point(x, y) for x, y in zip(xs, ys, strict=True)]
        self._blend(points, colour, width)

    def bars(self, edges: Sequence[float], heights: Sequence[float], colour: Colour) -> None:
        """Bars from the lower end of the y axis, which is 0, cut off at the frame."""
        left, top, right, bottom = self.box
        for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True):
            (start, upper), (end, _) = self.point(low, height), self.point(high, 0)
            start, end = max(left, round(start)), min(right, round(end))
            if height > 0 and end > left and start < right:
                # at least one pixel of what is there
                self._draw.rectangle(
                    (start, min(max(top, round(upper)), bottom - 1), max(start, end - 1), bottom), fill=colour
                )

    def _frame(self, ticks: tuple[int, int]) -> None:
        left, top, right, bottom = self.box
        draw, letters = self._draw, font(self._size)
        for value in self.x.ticks(ticks[0]):
            place, _ = self.point(value, self.y.low)
            draw.line((place, top, place, bottom), fill=GRID)
            self._number(value, (place, bottom + 8), "ma", self.x.logarithmic)
        for value in self.y.ticks(ticks[1]):
            _, place = self.point(self.x.low, value)
            draw.line((left, place, right, place), fill=GRID)
            self._number(value, (left - 8, place), "rm", self.y.logarithmic)
        draw.line((left, top, left, bottom, right, bottom), fill=QUIET, width=2)
        middle = (left + right) / 2
        if self.x.name:
            draw.text(
                (middle, bottom + 12 + self._size * 1.4), self.x.name, fill=INK, font=letters, anchor="ma"
            )
        if self.y.name:
            self._upright(self.y.name, (left - 3.8 * self._size, (top + bottom) / 2))

    def _number(self, value: float, place: tuple[float, float], anchor: str, logarithmic: bool) -> None:
        """A tick's number: of a logarithmic axis a power of ten where it is far from 1."""
        exponent = round(math.log10(value)) if logarithmic else 0
        letters = font(self._size)
        if not logarithmic or -3 < exponent < 3:
            self._draw.text(place, short_number(value), fill=QUIET, font=letters, anchor=anchor)
            return
        smaller, raised = font(round(self._size * 0.72)), str(exponent)
        wide, high = text_size("10", self._size)[0], text_size(raised, round(self._size * 0.72))[0]
        x, y = place
        x -= wide + high if anchor[0] == "r" else (wide + high) / 2
        y += self._size * (0.35 if anchor[1] == "m" else 0.95)
        self._draw.text((x, y), "10", fill=QUIET, font=letters, anchor="ls")
        self._draw.text((x + wide + 1, y - self._size * 0.4), raised, fill=QUIET, font=smaller, anchor="ls")

    def _upright(self, text: str, middle: tuple[float, float]) -> None:
        """Text that reads from below to above."""
        width, height = text_size(text, self._size)
        strip = Image.new("RGB", (width + 4, height + 8), (255, 255, 255))
        ImageDraw.Draw(strip).text((2, 2), text, fill=INK, font=font(self._size), anchor="la")
        turned = strip.rotate(90, expand=True)
        self.paper.paste(
            turned, (max(0, round(middle[0] - turned.width / 2)), round(middle[1] - turned.height / 2))
        )

    def _blend(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """A smooth line: its coverage is drawn larger, shrunk, and used to mix its colour in."""
        left, top, right, bottom = self.box
        size = (right - left + 1, bottom - top + 1)
        mask = Image.new("L", (size[0] * _FINER, size[1] * _FINER))
        moved = [((x - left + 0.5) * _FINER, (y - top + 0.5) * _FINER) for x, y in points]
        ImageDraw.Draw(mask).line(moved, fill=255, width=round(width * _FINER), joint="curve")
        coverage = mask.resize(size, Image.Resampling.BOX)
        self.paper.paste(Image.new("RGB", size, colour), (left, top), coverage)


def _round_step(step: float) -> float:
    """The largest of 1, 2, 5 times a power of ten up to one and a half of it."""
    power = 10.0 ** math.floor(math.log10(1.5 * step))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= 1.5 * step)


def _logarithmic_ticks(low: float, high: float, count: int) -> Iterator[float]:
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 2.5 else (1,)
    every = max(1, math.ceil(decades / count))
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        if exponent % every == 0:
            for factor in factors:
                value = factor * 10.0**exponent
                if low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                    yield value
