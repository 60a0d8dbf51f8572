"""Averages of what the steps report, kept on the device until somebody looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentae import distributed
from latentae.devices import has_float64


class Meter:
    """Means of named scalars over a logging interval.

    ``add`` and ``commit`` never wait for the device; ``read`` does so once, after one sum over the ranks.
    What was committed since the last ``read`` is part of a checkpoint, so that the first line of a resumed
    run is over as many steps as any other.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Takes the scalars of one micro-batch, until ``commit``."""
        self._pending.append({name: value.detach().clone() for name, value in scalars.items()})

    @torch.no_grad()
    def commit(self, accepted: Tensor | bool = True) -> None:
        """Takes in what was added since the last call, or forgets it where the update was not made."""
        for scalars in self._pending:
            for name, value in scalars.items():
                accepted = torch.as_tensor(accepted, device=value.device)
                nothing = torch.zeros_like(value)
                # What a checkpoint held lies on the CPU.
                total, count = (of.get(name, nothing).to(value) for of in (self._sums, self._counts))
                self._sums[name] = total + torch.where(accepted, value, nothing)
                self._counts[name] = count + accepted.to(value)
                self._device = value.device
        self._pending.clear()

    def read(self) -> dict[str, float]:
        """The means over steps and ranks since the last call; every rank must call it.

        What was committed in no step that counted is left out.
        """
        names = sorted(self._sums)
        result: dict[str, float] = {}
        if names:
            sums, counts = distributed.all_reduce_sum(self._table(names)).unbind(dim=1)
            means = zip(names, (sums / counts).tolist(), counts.tolist(), strict=True)
            result = {name: mean for name, mean, count in means if count}
        self._clear()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The sums and counts of each rank since the last ``read``; every rank must call it."""
        names = sorted(self._sums)
        if not names:
            return {"names": [], "ranks": None}
        return {"names": names, "ranks": distributed.all_gather_concat(self._table(names)[None]).cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what ``state_dict`` gave: each rank its own; the first one all if their number changed."""
        self._clear()
        ranks = state["ranks"]
        if ranks is None:
            return
        if len(ranks) == distributed.world_size():
            own = ranks[distributed.rank()]
        else:
            own = ranks.sum(dim=0) * distributed.is_main()
        for name, (total, count) in zip(state["names"], own, strict=True):
            self._sums[name], self._counts[name] = total, count

    def _table(self, names: list[str]) -> Tensor:
        """[names, 2] the sums and the counts in float64, on the device where that has it."""
        device = self._device if has_float64(self._device) else torch.device("cpu")
        pairs = [torch.stack([self._sums[name], self._counts[name]]) for name in names]
        return torch.stack([pair.to(device).double() for pair in pairs])
