"""Random numbers of a step: a function of the seed, the step and what they are for, whatever the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRandomness:
    """Draws for the global micro-batch, of which each rank takes its images' slice.

    So N ranks draw what one rank with an N times larger batch draws. Numbers are drawn on the CPU, where they
    are the same on every machine.

    Attributes:
        seed: of the run.
        step: optimizer steps done so far.
        micro_batch: which micro-batch of the step, from 0.
        rank, world_size: which of how many processes this is.
        device: where the numbers go.
    """

    seed: int
    step: int
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for one purpose, in the same state on every rank."""
        key = (self.step, self.micro_batch, *purpose.encode())
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)

    def normal(self, purpose: str, batch_size: int, *shape: int) -> Tensor:
        """Standard normal numbers [batch_size, *shape], float32, for this rank's images."""
        return self._slice(
            torch.randn(batch_size * self.world_size, *shape, generator=self.generator(purpose)), batch_size
        )

    def uniform(self, purpose: str, batch_size: int, *shape: int) -> Tensor:
        """Numbers of U[0, 1), [batch_size, *shape], float32, for this rank's images."""
        return self._slice(
            torch.rand(batch_size * self.world_size, *shape, generator=self.generator(purpose)), batch_size
        )

    def _slice(self, numbers: Tensor, batch_size: int) -> Tensor:
        own = numbers[self.rank * batch_size : (self.rank + 1) * batch_size]
        if torch.device(self.device).type == "cuda":
            own = own.pin_memory()  # else the copy waits for what the GPU is doing
        return own.to(self.device, non_blocking=True)
