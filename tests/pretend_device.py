"""A stand-in for Apple's GPU: a device without float64, whose tensors are computed on the CPU.

As on the real device, a float64 tensor there is an error, and so is an operation on tensors of two devices.
The device is registered for the whole process, so that this belongs into one of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from latentae import devices
from latentae.quantizers import lookup

NAME = "apple"
_aten = torch.ops.aten
# What takes tensors of both devices.
_MIXED = (_aten.copy_.default, _aten._to_copy.default, _aten.index.Tensor, _aten.index_put_.default)


class OnApple(torch.Tensor):
    """A tensor on the pretended device; `elem` holds its values."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> "OnApple":
        _refuse_float64(elem.dtype)
        return torch.Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, elem: Tensor) -> None:
        self.elem = elem

    def tolist(self) -> Any:
        return self.elem.tolist()

    def __repr__(self) -> str:
        return f"OnApple({self.elem})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Backend:
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        pass


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Registers the device; within the context tensors can be created on it and moved to it."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    devices.WITHOUT_FLOAT64 = (*devices.WITHOUT_FLOAT64, NAME)
    with _Mode():
        yield torch.device(NAME, 0)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func.namespace == "latentae":  # ours, which tells devices apart by itself
        with _Mode():
            return lookup._nearest_code(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device = kwargs.get("device")
    if func is _aten.copy_.default:
        on_apple = isinstance(args[0], OnApple)
    elif device is not None:
        on_apple = torch.device(device).type == NAME
    else:
        on_apple = any(isinstance(tensor, OnApple) for tensor in tensors)
    if func not in _MIXED and any(isinstance(tensor, OnApple) for tensor in tensors):
        strays = [tensor for tensor in tensors if not isinstance(tensor, OnApple) and tensor.ndim]
        assert not strays, (
            f"{func} of tensors on the device and on {strays[0].device}, {list(strays[0].shape)}"
        )
    plain_args, plain_kwargs = tree_map(_unwrapped, (args, kwargs))
    if device is not None:
        plain_kwargs["device"] = torch.device("cpu")
    if func is _aten._to_copy.default and isinstance(args[0], OnApple):
        _refuse_float64(kwargs.get("dtype"))  # it is converted before it is moved
    if func is _aten._to_copy.default and on_apple != isinstance(args[0], OnApple):
        plain_args = (plain_args[0].clone(), *plain_args[1:])  # to another device is never the same memory
    out = func(*plain_args, **plain_kwargs)
    if not on_apple:
        return out
    known = {id(tensor.elem): tensor for tensor in tensors if isinstance(tensor, OnApple)}  # changed in place
    return tree_map(lambda value: known.get(id(value), _on_apple(value)), out)


def _on_apple(value: Any) -> Any:
    return OnApple(value) if isinstance(value, Tensor) else value


def _refuse_float64(dtype: torch.dtype | None) -> None:
    if dtype in (torch.float64, torch.complex128):
        raise TypeError("this device has no float64")


def _unwrapped(value: Any) -> Any:
    return value.elem if isinstance(value, OnApple) else value
