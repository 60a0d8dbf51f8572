"""What genuine checkpoints name besides tensors, and the inert things that take its place on reading.

A Lightning checkpoint keeps the states of callbacks under their classes, and hyperparameters as objects of
the libraries that held them. None of it is needed, and none of these libraries is imported: under each name
stands something that does nothing. Any name that is not listed is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InertObject:
    """Can be made from anything and given any state, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InertObject:
        """Takes any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes any arguments."""

    def __setstate__(self, state: Any) -> None:
        """Takes any state."""


class InertMapping:
    """Becomes an empty dict, into which a pickle may put items."""

    def __new__(cls, *args: Any) -> dict[Any, Any]:  # type: ignore[misc]
        """Takes any arguments."""
        return {}


_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
_CALLBACKS = (
    "early_stopping.EarlyStopping",
    "lr_monitor.LearningRateMonitor",
    "model_checkpoint.ModelCheckpoint",
    "timer.Timer",
)
_OBJECTS = (
    *(f"{package}.callbacks.{name}" for package in _LIGHTNING for name in _CALLBACKS),
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Float", "Integer", "String")),
    *(
        f"{module}.{system}Path"
        for module in ("pathlib", "pathlib._local")
        for system in ("Posix", "Windows")
    ),
    "torch.torch_version.TorchVersion",
    "typing.Any",
)
_MAPPINGS = (
    "collections.defaultdict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING),
)


def inert_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """(stand-in, name) for ``torch.serialization.safe_globals``."""
    return [*((InertObject, name) for name in _OBJECTS), *((InertMapping, name) for name in _MAPPINGS)]
