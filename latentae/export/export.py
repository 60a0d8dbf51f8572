"""Exports an autoencoder: writes it beside its place, reopens it, compares it, then moves it there."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from latentae.console import FAMILIES
from latentae.export import DTYPES, FORMATS
from latentae.export.comparison import TOLERANCES, compare, find_overflow
from latentae.export.formats import LDM, ComfyUI, Diffusers, Format, Latentae
from latentae.export.rescaling import check_written
from latentae.export.taesd import PAIR_SUFFIXES, Taesd
from latentae.files import list_files, written_aside
from latentae.models import KLVAE, VQVAE, Autoencoder
from latentae.models.half_safe import HalfSafeReport
from latentae.models.plain import (
    check_hooks,
    check_weights,
    dequantise,
    make_plain,
    remove_offloading,
    unwrap,
)

_FORMATS: dict[str, Format] = {
    "diffusers": Diffusers(),
    "ldm": LDM(),
    "comfyui": ComfyUI(),
    "taesd": Taesd(),
    "latentae": Latentae(),
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The beginnings of the names in a model's folder. Only a folder of such files may be replaced.
_MODEL_FILES = ("config.json", "diffusion_pytorch_model", "README.md", ".gitattributes")


@dataclass(frozen=True)
class ExportReport:
    """A finished export, reopened and compared with its source.

    Attributes:
        path: the file or folder that was written.
        format: a key of ``latentae.export.FORMATS``.
        files: names of all files, relative to ``path`` where that is a folder.
        errors: the largest difference from the source, divided by the source's largest value, for each
            quantity that was compared: ``encode``, ``decode``, and ``normalised latents`` where the scale is
            known.
        tolerance: the limit of the errors, given the dtype of the weights.
        load_hint: one line on how to load it.
        remarks: sentences on what a user should know, such as convolutions that were added.
        half_safe: how the weights were rescaled for float16; None if that was not asked for.
    """

    path: Path
    format: str
    files: tuple[str, ...]
    errors: dict[str, float]
    tolerance: float
    load_hint: str
    remarks: tuple[str, ...] = ()
    half_safe: HalfSafeReport | None = None

    @property
    def max_error(self) -> float:
        """The largest of ``errors``."""
        return max(self.errors.values())


def export_autoencoder(
    model: Autoencoder,
    path: str | Path,
    *,
    format: str,
    family: str | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
    half_safe_images: torch.Tensor | None = None,
) -> ExportReport:
    """Writes a model in a format that other programs read, and checks what they will read.

    The model runs once in the dtype of the weights, and must give finite values there. It is then written
    beside ``path``, reopened, and compared with the model on random images in float32: latents, pixels, and
    latents as a denoiser sees them. If any of this fails, nothing is left behind.

    Args:
        model: stays as it is; what has to be folded is folded in a copy. Adapters (LoRA) are merged, fused
            projections split, and quantised weights written as floats.
        path: a file ending in ``.safetensors`` for ``ldm`` and ``comfyui``, else a folder.
        format: ``diffusers``, a folder of the stock class; ``ldm``, one file in latent diffusion's layout,
            with scale and shift in its metadata; ``comfyui``, the same with the normalisation folded into the
            weights, so that the family's constants hold, which ComfyUI applies; ``taesd``, a folder with the
            two files of a TinyAutoencoder; ``latentae``, a folder of the model's own class, which holds every
            model. ``latentae.export.FORMATS`` says who reads each.
        family: ``sd1``, ``sdxl``, ``sd3`` or ``flux``. ``comfyui`` needs one, ``ldm`` records it as metadata,
            and ``taesd`` calls the files by the names that ComfyUI looks for. It does not give the model its
            scale: for that, pass it to ``load_autoencoder``.
        dtype: of the weights, ``fp32``, ``fp16`` or ``bf16``.
        overwrite: whether an earlier export at ``path`` may be replaced.
        half_safe_images: [B, C, H, W] in [−1, 1]; if given, the weights are rescaled so that activations on
            such images fit float16 (see ``make_half_safe``), and the written model decodes some of them in
            float16. A model that cannot be rescaled is written as it is, and a remark says why.

    Raises:
        ValueError: an unknown format, family or dtype; a path that cannot be written to; a model that the
            format cannot hold; values that are not finite in the dtype, unless the format can record that
            the model must run in float32; an export that differs from the model by more than rounding to the
            dtype does.
    """
    if not isinstance(model, Autoencoder):
        remedy = ": export model.get_base_model()" if hasattr(model, "get_base_model") else ""  # a PeftModel
        raise ValueError(
            f"model is a {type(model).__name__}, but must be a KLVAE, Flux2VAE, VQVAE, VQGAN or "
            f"TinyAutoencoder{remedy}"
        )
    _check_choice("format", format, FORMATS)
    _check_choice("dtype", dtype, DTYPES)
    if family is not None:
        _check_choice("family", family, FAMILIES)
    path, kind = Path(path), _FORMATS[format]
    target = path.expanduser().resolve()
    check_target(target, folder=kind.is_folder, overwrite=overwrite)

    if format == "comfyui" and family is None:
        raise ValueError(f"format comfyui needs a family, one of {', '.join(FAMILIES)}")

    # Change a copy to what the format can hold.
    source, remarks = _in_float32(model)
    prepared = copy.deepcopy(source)
    remarks += make_plain(prepared)
    for name, value in prepared.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"the weight {name} holds values that are not finite: the model's weights are damaged"
            )
    _check_fits(prepared, kind, family)
    remarks += kind.prepare(prepared, family)
    half_safe = None
    if half_safe_images is not None:
        half_safe = prepared.make_half_safe(half_safe_images)
        remarks += _describe_half_safe(half_safe, prepared, kind, dtype)
    remarks += _check_precision(prepared, kind, dtype)

    # Write it, and compare what readers get with the model.
    with written_aside(target) as aside:
        kind.write(prepared, aside, _DTYPES[dtype], family)
        files = list_files(aside)
        reopened = kind.reopen(aside, family)
        errors = compare(source, prepared, reopened)
        for name, error in errors.items():
            if not error <= TOLERANCES[dtype]:
                raise ValueError(
                    f"the export was not kept: in {name} it differs from the model by {error:.1e} of the "
                    f"largest value, and rounding to {dtype} explains {TOLERANCES[dtype]:.0e} at most"
                )
        if half_safe is not None and half_safe_images is not None:
            precision = check_written(prepared, reopened, half_safe_images, half_safe)
            remarks += [f"read back and run in float16, {precision}"] if precision is not None else []
    return ExportReport(
        path=path,
        format=format,
        files=files,
        errors=errors,
        tolerance=TOLERANCES[dtype],
        load_hint=kind.load_hint(prepared, path, family),
        remarks=tuple(remarks),
        half_safe=half_safe,
    )


def _check_fits(model: Autoencoder, kind: Format, family: str | None) -> None:
    """Raises ValueError where a format cannot hold a model; the message names the formats that can."""
    found = kind.objections(model, family)
    if not found:
        return
    fitting = [name for name, other in _FORMATS.items() if not other.objections(model, None)]
    others = ", ".join(fitting[:-1])  # the last one is latentae
    named = f" as {family}" if family is not None and not kind.is_folder else ""
    remedy = f"{others} or " if others else ""
    only = "" if model.fits_stock_class else "only "
    raise ValueError(
        f"{kind.holder} cannot hold this model{named}: {'; '.join(found)}. Export it as {remedy}latentae "
        f"(a folder that {only}latentae.load_autoencoder opens)"
    )


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")


def _in_float32(model: Autoencoder) -> tuple[Autoencoder, list[str]]:
    """Returns a copy on the CPU in eval mode that takes small images whole, and remarks."""
    check_weights(model)
    check_hooks(model)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        remove_offloading(twin)
        unwrap(twin)  # formats look at the types of the parts
        remarks = dequantise(twin)
        twin = twin.to("cpu").float().eval()
    twin.use_tiling = twin.use_slicing = False
    return twin, remarks


def _check_precision(model: Autoencoder, kind: Format, dtype: str) -> list[str]:
    """Runs the prepared model in the dtype of its weights; returns remarks.

    Raises:
        ValueError: it gives values that are not finite, and the format cannot record that it needs float32.
    """
    step = find_overflow(model, _DTYPES[dtype])
    if step is None:
        return []
    if find_overflow(model, torch.float32) is not None:
        raise ValueError(
            f"{step} gives values that are not finite in float32: the model's weights are damaged"
        )
    problem = f"{step} gives values that are not finite where the model runs in {dtype}"
    remark = kind.record_upcast(model) if dtype == "fp16" else None
    if remark is None:
        remedy = "bf16 or fp32" if dtype == "fp16" else "fp32"
        raise ValueError(
            f"{problem}: its activations exceed the dtype's range, and this format cannot record that it "
            f"must run in float32. Choose {remedy}"
        )
    return [f"{problem}: {remark}"]


def _describe_half_safe(report: HalfSafeReport, model: KLVAE | VQVAE, kind: Format, dtype: str) -> list[str]:
    """Returns remarks on how a model was rescaled; records that it needs float32 if it could not be."""
    remarks = [str(report)]
    # For fp16, _check_precision records it.
    if report.obstacle is not None and dtype != "fp16" and (upcast := kind.record_upcast(model)):
        remarks.append(upcast)
    return remarks


def check_target(path: Path, *, folder: bool, overwrite: bool) -> None:
    """Checks that an export may be put at ``path``.

    Args:
        path: need not exist.
        folder: whether a folder will be written, not a ``.safetensors`` file.
        overwrite: whether an earlier export may be replaced.

    Raises:
        ValueError: something is there that must not be overwritten or cannot be an earlier export, or the
            name does not fit the format.
    """
    is_file_name = path.suffix == ".safetensors"
    if folder and is_file_name:
        raise ValueError(f"{path} names a file, but this format is a folder: leave the .safetensors out")
    if not folder and not is_file_name:
        raise ValueError(f"{path} does not fit this format, which is one file: end it in .safetensors")
    if not os.path.lexists(path):
        return
    if path.is_dir() != folder:
        raise ValueError(f"{path} is a {'file' if folder else 'folder'}: choose another path")
    if folder and not any(path.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{path} exists: choose another path, or say overwrite")
    if folder:
        names = sorted(item.name for item in path.iterdir())
        others = [name for name in names if not name.startswith(_MODEL_FILES)]
        others = [name for name in others if not name.endswith(PAIR_SUFFIXES)]
        if others:
            raise ValueError(
                f"{path} holds more than a model ({others[0]}), which would be lost: choose another folder"
            )
