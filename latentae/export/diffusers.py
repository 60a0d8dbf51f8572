"""A folder that diffusers loads, with or without latentae beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from latentae.export.codebook import write_out_codebook
from latentae.export.format import Format
from latentae.export.normalisation import MEASURE, fold_to, read_normalisation
from latentae.models import KLVAE, VQVAE, load_autoencoder
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.metadata import embed_config


def export_diffusers(autoencoder: KLVAE | VQVAE, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors`` of the stock class into ``path``.

    The weights' metadata have the config, too, so that the file can be opened alone.

    Args:
        dtype: of the weights; None leaves them as they are.

    Raises:
        ValueError: no stock class can hold the weights.
    """
    stock = autoencoder.to_diffusers()
    if dtype is not None:
        nn.Module.to(
            stock, dtype
        )  # ModelMixin's own warns of modules to keep in float32, of which there are none
    stock.save_pretrained(str(path))
    embed_config(path)


def _prepare(model: KLVAE | VQVAE, family: str | None) -> list[str]:
    remarks = write_out_codebook(model)
    config = model.config
    if family is not None and not _has_scale_of(model, family):
        remarks.append(f"family {family} changes nothing in this format, whose config tells scale and shift")
    if config.scaling_factor is None:
        remarks.append(
            f"the scale of the latents is not known, and pipelines need it: {MEASURE}, or name the family "
            "that the model comes from by --family"
        )
    elif isinstance(model, VQVAE) and (config.shift_factor or config.latents_mean is not None):
        # A VQModel's config has a place for the scale alone.
        remark = fold_to(model, 0.0, config.scaling_factor)
        remarks += [remark] if remark else []
    if isinstance(model, KLVAE):
        if config.shift_factor is None:
            model.change_config(shift_factor=0.0)  # SD 3 and FLUX pipelines compute with it
        if config.force_upcast and model.post_quant_conv is None:
            model.change_config(force_upcast=False)
            remarks.append(
                "force_upcast is off, since SDXL pipelines look for post_quant_conv where it is on"
            )
    return remarks


def _has_scale_of(model: KLVAE | VQVAE, family: str) -> bool:
    own, named = read_normalisation(model), FAMILIES[family]
    return own is not None and bool((own.scale == named.scale).all() and (own.shift == named.shift).all())


def _record_upcast(model: KLVAE | VQVAE) -> str | None:
    if model.post_quant_conv is None:  # pipelines look for it where force_upcast is on
        return None
    model.change_config(force_upcast=True)
    return (
        "force_upcast is on, so SDXL pipelines run it in float32; every other program must load it in "
        "bfloat16 or float32"
    )


def _write(model: KLVAE | VQVAE, path: Path, dtype: torch.dtype, family: str | None) -> None:
    export_diffusers(model, path, dtype)


def _reopen(path: Path, family: str | None) -> KLVAE | VQVAE:
    return load_autoencoder(path, torch_dtype=torch.float32)


def _load_hint(model: KLVAE | VQVAE, path: Path, family: str | None) -> str:
    stock = "AutoencoderKL" if isinstance(model, KLVAE) else "VQModel"
    return f'diffusers.{stock}.from_pretrained("{path}")'


DIFFUSERS = Format(
    is_folder=True,
    prepare=_prepare,
    write=_write,
    reopen=_reopen,
    record_upcast=_record_upcast,
    load_hint=_load_hint,
)
