"""Export: models in the formats that others read.

Nothing heavy is imported before it is asked for, so that a mistake on the command line is answered at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentae.export.autoencoder import export_autoencoder
    from latentae.export.diffusers import export_diffusers
    from latentae.export.report import ExportReport

__all__ = ["ExportReport", "export_autoencoder", "export_diffusers"]

_HOMES = {
    "ExportReport": "report",
    "export_autoencoder": "autoencoder",
    "export_diffusers": "diffusers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
