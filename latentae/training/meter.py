"""Averages of what the steps report, kept on the device until somebody looks."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae import distributed
from latentae.quantizers import codebook_health


class Meter:
    """Means of named scalars and the counts of codes over a logging interval.

    ``add`` never waits for the device; ``read`` does so once, after one sum over the ranks.
    """

    def __init__(self, num_codes: int | None = None) -> None:
        self.num_codes = num_codes
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._code_counts: Tensor | None = None

    @torch.no_grad()
    def add(self, scalars: dict[str, Tensor], indices: Tensor | None = None) -> None:
        """Takes the scalars of one micro-batch, and the codes it was given."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        if indices is not None and self.num_codes is not None:
            counts = torch.bincount(indices.flatten(), minlength=self.num_codes)
            self._code_counts = counts if self._code_counts is None else self._code_counts + counts

    def read(self) -> dict[str, float]:
        """The means over steps and ranks since the last call; every rank must call it."""
        names = sorted(self._sums)
        result: dict[str, float] = {}
        if names:
            means = torch.stack([self._sums[name].double() / self._counts[name] for name in names])
            result = dict(zip(names, distributed.all_reduce_mean(means).tolist(), strict=True))
        if self._code_counts is not None:
            health = codebook_health(distributed.all_reduce_sum(self._code_counts))
            result |= {"codebook_usage": health.usage, "codebook_perplexity": health.perplexity}
        self._clear()
        return result
