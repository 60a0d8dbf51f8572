"""The steps in which the formats differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from latentae.models import KLVAE, VQVAE


@dataclass(frozen=True)
class Format:
    """One format; ``family`` is None or the name of a known family throughout.

    Attributes:
        is_folder: whether a folder is written, and not a ``.safetensors`` file.
        prepare: (model, family) → remarks. Changes a float32 copy of the model to what shall be written;
            raises ValueError where the format cannot hold it.
        write: (model, path, dtype, family). Writes that, rounded to the dtype.
        reopen: (path, family) → the model that readers of the format get, in eval mode and float32.
        record_upcast: model → remark. Records in a float32 copy of the model that programs must run it in
            float32 where they run in float16; None where the format, or who reads it, has no place for that.
        load_hint: (model, path, family) → one line on how to load it.
    """

    is_folder: bool
    prepare: Callable[[KLVAE | VQVAE, str | None], list[str]]
    write: Callable[[KLVAE | VQVAE, Path, torch.dtype, str | None], None]
    reopen: Callable[[Path, str | None], KLVAE | VQVAE]
    record_upcast: Callable[[KLVAE | VQVAE], str | None]
    load_hint: Callable[[KLVAE | VQVAE, Path, str | None], str]
