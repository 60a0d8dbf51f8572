"""What a training step needs of a device's memory, counted and measured."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class MemoryUse:
    """Bytes on one device while a step is made, by what they are for.

    Attributes:
        weights: parameters and buffers of the networks that learn.
        gradients: of their parameters.
        optimizer: what the optimizers remember.
        average: the moving average of the autoencoder.
        losses: networks that only measure, such as LPIPS's.
        activations: the most that was kept for backward passes at any moment, and held within LPIPS.
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

    @contextmanager
    def during(self, module: nn.Module) -> Iterator[None]:
        """Counts what a module's forward holds while it runs, too, beside what is kept at that moment."""
        space = WorkingSpace()

        def begin(*_: object) -> None:
            space.__enter__()

        def count(*_: object) -> None:
            space.__exit__(None, None, None)
            self.peak = max(self.peak, self._present + space.peak)

        hooks = [
            module.register_forward_pre_hook(begin),
            module.register_forward_hook(count, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def release(self, tensor: Tensor) -> None:
        """A graph has let go of a tensor."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._holders:
            self._holders[address] -= 1
            if not self._holders[address]:
                del self._holders[address]
                self._present -= storage.nbytes()


class WorkingSpace(TorchDispatchMode):
    """Context in which the tensors that are made are counted, for as long as they live.

    Attributes:
        peak: the most bytes at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._present = 0
        self._sizes: dict[int, int] = {}  # a storage's address -> its bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors([args, kwargs or {}])}
        for tensor in _tensors([output]):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address and address not in given and address not in self._sizes:
                self._sizes[address] = storage.nbytes()
                self._present += storage.nbytes()
                self.peak = max(self.peak, self._present)
                weakref.finalize(storage, self._release, address)
        return output

    def _release(self, address: int) -> None:
        self._present -= self._sizes.pop(address)


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
