"""Export: writes models in the formats that other programs read.

Heavy libraries load on first use, so that a command line can report a mistake at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentae.export.export import ExportReport, export_autoencoder
    from latentae.export.formats import export_diffusers

__all__ = ["DTYPES", "FORMATS", "ExportReport", "export_autoencoder", "export_diffusers"]

FORMATS = ("diffusers", "ldm", "comfyui")
DTYPES = ("fp32", "fp16", "bf16")

_HOMES = {"ExportReport": "export", "export_autoencoder": "export", "export_diffusers": "formats"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
