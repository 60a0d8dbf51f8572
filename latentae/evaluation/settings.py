"""How an evaluation runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs; the first two change its numbers by rounding at most.

    Attributes:
        batch_size: images of one size that go through a model together.
        num_workers: processes that decode images, per process.
        cycle_images: how many images go through the model again and again, spread over all of them.
        cycle_rounds: after how many rounds their drift is measured.

    Raises:
        ValueError: a number out of its range.
    """

    batch_size: int = 16
    num_workers: int = 0
    cycle_images: int = 32
    cycle_rounds: tuple[int, ...] = (1, 2, 5, 10)

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("num_workers", 0), ("cycle_images", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {lowest} or more")
