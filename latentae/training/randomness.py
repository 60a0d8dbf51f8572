"""Random numbers of a step: a function of the seed, the step, their purpose and the image they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRandomness:
    """Draws of a micro-batch, for each image and for the whole step.

    The numbers of an image are a function of (seed, step, micro-batch, purpose, place in the global
    micro-batch). Image i of rank r has the place r · B + i. So N ranks draw what one rank with an N times
    larger batch draws. A rank draws the numbers of its own images alone, at a cost that does not depend on N.
    Numbers are drawn on the CPU, and so are the same for every device.

    Earlier versions drew the numbers of all images from one generator. A run that continues from one of their
    checkpoints draws other noise from there on.

    Attributes:
        seed: of the run.
        step: optimizer steps done so far.
        micro_batch: which micro-batch of the step, from 0.
        rank, world_size: which of how many processes this is. No draw depends on how many there are.
        device: where the numbers go.
    """

    seed: int
    step: int
    micro_batch: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator for what the whole step shares, in the same state on every rank."""
        return torch.Generator().manual_seed(self._seed(purpose))

    def normal(self, purpose: str, batch_size: int, *shape: int) -> Tensor:
        """Standard normal numbers [batch_size, *shape], float32, for this rank's images."""
        return self._draw(Tensor.normal_, purpose, batch_size, shape)

    def uniform(self, purpose: str, batch_size: int, *shape: int) -> Tensor:
        """Numbers of U[0, 1), [batch_size, *shape], float32, for this rank's images."""
        return self._draw(Tensor.uniform_, purpose, batch_size, shape)

    def background_colours(self, batch_size: int) -> Tensor:
        """Colours [batch_size, 3] of U[−1, 1) that this rank's RGBA images are composited over.

        They are the same in each call, so all losses see an image and its reconstruction over one colour.
        """
        return 2 * self.uniform("background", batch_size, 3) - 1

    def _draw(
        self, fill: Callable[..., Tensor], purpose: str, batch_size: int, shape: tuple[int, ...]
    ) -> Tensor:
        # The copy from memory that is not pinned would wait for what the GPU is doing.
        pinned = torch.device(self.device).type == "cuda"
        numbers = torch.empty(batch_size, *shape, dtype=torch.float32, pin_memory=pinned)
        generator = torch.Generator()
        for own, seed in zip(numbers.unbind(), self._image_seeds(purpose, batch_size), strict=True):
            fill(own, generator=generator.manual_seed(seed))
        return numbers.to(self.device, non_blocking=pinned)

    def _seed(self, purpose: str) -> int:
        sequence = np.random.SeedSequence(
            self.seed, spawn_key=(self.step, self.micro_batch, *purpose.encode())
        )
        return int(sequence.generate_state(1, np.uint64)[0]) >> 1

    def _image_seeds(self, purpose: str, batch_size: int) -> list[int]:
        """The numbers at the images' places in the sequence of SplitMix64 (Steele et al. 2014).

        Each is computed by itself, without those before it.
        """
        first = self.rank * batch_size + 1
        places = np.arange(first, first + batch_size, dtype=np.uint64)
        state = np.uint64(self._seed(purpose)) + places * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        seeds: list[int] = ((state ^ (state >> np.uint64(31))) >> np.uint64(1)).tolist()
        return seeds
