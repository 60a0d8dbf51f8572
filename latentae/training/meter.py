"""Averages of what the steps report, kept on the device until somebody looks."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae import distributed
from latentae.quantizers import code_counts, codebook_health


class Meter:
    """Means of named scalars and the counts of codes over a logging interval.

    ``add`` and ``commit`` never wait for the device; ``read`` does so once, after one sum over the ranks.
    """

    def __init__(self, num_codes: int | None = None) -> None:
        self.num_codes = num_codes
        self._clear()

    def _clear(self) -> None:
        self._pending: list[tuple[dict[str, Tensor], Tensor | None]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._code_counts: Tensor | None = None

    def add(self, scalars: dict[str, Tensor], indices: Tensor | None = None) -> None:
        """Takes the scalars of one micro-batch, and the codes it was given, until ``commit``."""
        self._pending.append(({name: value.detach().clone() for name, value in scalars.items()}, indices))

    @torch.no_grad()
    def commit(self, accepted: Tensor | bool = True) -> None:
        """Takes in what was added since the last call, or forgets it where the update was not made."""
        for scalars, indices in self._pending:
            for name, value in scalars.items():
                accepted = torch.as_tensor(accepted, device=value.device)
                nothing = torch.zeros_like(value)
                self._sums[name] = self._sums.get(name, nothing) + torch.where(accepted, value, nothing)
                self._counts[name] = self._counts.get(name, 0) + accepted.to(value)
            if indices is not None and self.num_codes is not None:
                counts = code_counts(indices, self.num_codes) * accepted
                self._code_counts = counts if self._code_counts is None else self._code_counts + counts
        self._pending.clear()

    def read(self) -> dict[str, float]:
        """The means over steps and ranks since the last call; every rank must call it.

        What was committed in no step that counted is left out.
        """
        names = sorted(self._sums)
        result: dict[str, float] = {}
        if names:
            table = torch.stack([torch.stack([self._sums[n], self._counts[n]]).double() for n in names])
            sums, counts = distributed.all_reduce_sum(table).unbind(dim=1)
            means = zip(names, (sums / counts).tolist(), counts.tolist(), strict=True)
            result = {name: mean for name, mean, count in means if count}
        if self._code_counts is not None:
            health = codebook_health(distributed.all_reduce_sum(self._code_counts))
            result |= {"codebook_usage": health.usage, "codebook_perplexity": health.perplexity}
        self._clear()
        return result
