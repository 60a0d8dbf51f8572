"""What an export tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportReport:
    """A finished export, reopened and compared with its source.

    Attributes:
        path: the file or folder that was written.
        format: ``diffusers``, ``ldm`` or ``comfyui``.
        files: names of all files, within ``path`` where that is a folder.
        errors: for each quantity that was compared (``encode``, ``decode``, and ``normalised latents`` where
            the scale is known) the largest difference from the source, divided by the source's largest value.
        tolerance: what the errors had to stay under, given the dtype of the weights.
        load_hint: one line on how to load it.
        remarks: sentences on what a user should know, such as convolutions that were added.
    """

    path: Path
    format: str
    files: tuple[str, ...]
    errors: dict[str, float]
    tolerance: float
    load_hint: str
    remarks: tuple[str, ...] = ()

    @property
    def max_error(self) -> float:
        """The largest of ``errors``."""
        return max(self.errors.values())
