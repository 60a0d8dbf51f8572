"""Export of an autoencoder in any format: written aside, reopened, compared, then put in its place."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path

import torch

from latentae.export.choices import DTYPES, FAMILIES, FORMATS
from latentae.export.comfyui import COMFYUI
from latentae.export.comparison import TOLERANCES, compare
from latentae.export.diffusers import DIFFUSERS
from latentae.export.format import Format
from latentae.export.ldm import LDM
from latentae.export.report import ExportReport
from latentae.export.target import check_target, list_files, written_aside
from latentae.models import KLVAE, VQVAE
from latentae.models.wrappers import unwrap

_FORMATS: dict[str, Format] = {"diffusers": DIFFUSERS, "ldm": LDM, "comfyui": COMFYUI}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_autoencoder(
    model: KLVAE | VQVAE,
    path: str | Path,
    *,
    format: str,
    family: str | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
) -> ExportReport:
    """Writes a model in a format that others read, and checks what they will read.

    It is written beside its place, reopened, and compared with the model on random images: latents, pixels,
    and latents as a denoiser sees them. Where that fails, nothing is left behind.

    Args:
        model: left as it is; what has to be folded is folded in a copy.
        path: a folder for ``diffusers``, else a file ending in ``.safetensors``.
        format: ``diffusers``, a folder of the stock class; ``ldm``, one file in latent diffusion's layout,
            with scale and shift in its metadata; ``comfyui``, the same with the normalisation folded into the
            weights, so that the family's constants hold, which ComfyUI applies.
        family: ``sd1``, ``sdxl``, ``sd3`` or ``flux``. ``comfyui`` needs one, ``ldm`` notes it as metadata.
        dtype: of the weights, ``fp32``, ``fp16`` or ``bf16``.
        overwrite: whether an earlier export at ``path`` may be replaced.

    Raises:
        ValueError: an unknown format, family or dtype; a path that cannot be written to; a model that the
            format cannot hold; an export that differs from the model by more than rounding to the dtype does.
    """
    if not isinstance(model, KLVAE | VQVAE):
        raise ValueError(f"model is a {type(model).__name__}, but must be a KLVAE, a VQVAE or a VQGAN")
    _check_choice("format", format, FORMATS)
    _check_choice("dtype", dtype, DTYPES)
    if family is not None:
        _check_choice("family", family, FAMILIES)
    path, kind = Path(path), _FORMATS[format]
    target = path.expanduser().resolve()
    check_target(target, folder=kind.is_folder, overwrite=overwrite)
    source, prepared = _in_float32(model), _in_float32(model)
    remarks = kind.prepare(prepared, family)
    with written_aside(target) as aside:
        kind.write(prepared, aside, _DTYPES[dtype], family)
        files = list_files(aside)
        errors = compare(source, prepared, kind.reopen(aside, family))
        _check_errors(errors, dtype)
    return ExportReport(
        path=path,
        format=format,
        files=files,
        errors=errors,
        tolerance=TOLERANCES[dtype],
        load_hint=kind.load_hint(prepared, path, family),
        remarks=tuple(remarks),
    )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")


def _in_float32(model: KLVAE | VQVAE) -> KLVAE | VQVAE:
    """A copy on the CPU in eval mode, which takes small images whole."""
    with torch.no_grad():
        twin = copy.deepcopy(model).to("cpu").float().eval()
    unwrap(twin)  # formats look at what the parts are
    twin.use_tiling = twin.use_slicing = False
    return twin


def _check_errors(errors: dict[str, float], dtype: str) -> None:
    for name, error in errors.items():
        if not error <= TOLERANCES[dtype]:
            raise ValueError(
                f"the export was not kept: in {name} it differs from the model by {error:.1e} of the largest "
                f"value, and rounding to {dtype} explains {TOLERANCES[dtype]:.0e} at most"
            )
