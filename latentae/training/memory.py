"""What a training step needs of a device's memory, counted and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class MemoryUse:
    """Bytes on one device while a step is made, by what they are for.

    Attributes:
        weights: parameters and buffers of the networks that learn.
        gradients: of their parameters.
        optimizer: what the optimizers remember.
        average: the moving average of the autoencoder.
        losses: networks that only measure, such as LPIPS's.
        activations: the most that was kept for backward passes at any moment.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    losses: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum: about the peak, without the working space of single operations."""
        return sum(getattr(self, part.name) for part in fields(self))


class ActivationMeter:
    """Context in which the tensors that autograd keeps for backward passes are counted.

    Tensors that share a storage count once, and no longer than a graph holds them.

    Args:
        counted: tensors counted elsewhere, such as weights.

    Attributes:
        peak: the most bytes at any moment.
    """

    def __init__(self, counted: Iterable[Tensor] = ()) -> None:
        self.peak = 0
        self._present = 0
        self._holders: dict[int, int] = {}  # a storage's address -> how often it is kept
        self._elsewhere = {tensor.untyped_storage().data_ptr() for tensor in counted}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, _give_back)

    def __enter__(self) -> ActivationMeter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _keep(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._elsewhere:
            if address not in self._holders:
                self._present += storage.nbytes()
                self.peak = max(self.peak, self._present)
            self._holders[address] = self._holders.get(address, 0) + 1
        return _Kept(tensor, self)

    def release(self, tensor: Tensor) -> None:
        """A graph has let go of a tensor."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._holders:
            self._holders[address] -= 1
            if not self._holders[address]:
                del self._holders[address]
                self._present -= storage.nbytes()


class _Kept:
    """What a graph holds in a tensor's place; it dies with the graph."""

    __slots__ = ("meter", "tensor")

    def __init__(self, tensor: Tensor, meter: ActivationMeter) -> None:
        self.tensor = tensor
        self.meter = meter

    def __del__(self) -> None:
        self.meter.release(self.tensor)


def _give_back(kept: _Kept) -> Tensor:
    return kept.tensor


def module_bytes(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers, each tensor once."""
    tensors = {
        id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    return tensor_bytes(list(tensors.values()))


def gradient_bytes(*modules: nn.Module) -> int:
    """Bytes of the gradients that the modules' parameters take."""
    return tensor_bytes([p for module in modules for p in module.parameters() if p.requires_grad])


def tensor_bytes(state: Any) -> int:
    """Bytes of all the tensors in nested dictionaries and sequences, such as an optimizer's state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
