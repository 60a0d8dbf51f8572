"""A single file in the layout of latent diffusion and taming, which most programs read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import Encoder
from safetensors.torch import save_file

from latentae.export.codebook import write_out_codebook
from latentae.export.format import Format
from latentae.export.normalisation import MEASURE, fold_to, read_normalisation
from latentae.models import KLVAE, VQVAE, load_autoencoder
from latentae.models.checkpoints.families import FAMILY_KEY, SCALE_KEY, SHIFT_KEY, check_family
from latentae.models.checkpoints.metadata import config_metadata
from latentae.models.checkpoints.names import to_ldm_names

_BLOCKS = {
    "DownEncoderBlock2D": False,
    "UpDecoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
    "AttnUpDecoderBlock2D": True,
}


def ldm_objections(model: KLVAE | VQVAE) -> list[str]:
    """Why latent diffusion's layout cannot hold a model; nothing where it can.

    The file has no config: whoever reads it takes 32 groups, SiLU and the like for granted.
    """
    if not isinstance(model.encoder, Encoder):
        return ["its backbone is another one"]
    config = model.config
    found = []
    if isinstance(model, VQVAE) and not model.quantize.is_euclidean:
        found.append(f"its quantizer is {model.config.quantizer['type']!r}, without a table of codes")
    if config.norm_num_groups != 32:
        found.append(f"norm_num_groups is {config.norm_num_groups}, not 32")
    if config.act_fn not in ("silu", "swish"):
        found.append(f"act_fn is {config.act_fn}, not silu")
    if not config.mid_block_add_attention:
        found.append("mid_block_add_attention is off")
    if config.get("norm_type", "group") != "group":
        found.append(f"norm_type is {config.norm_type}, not group")
    widths = config.block_out_channels
    if any(width % widths[0] for width in widths):
        found.append(f"block_out_channels {list(widths)} are not multiples of the first")
    types = [*config.down_block_types, *config.up_block_types]
    attention = [_BLOCKS.get(name) for name in types]
    unknown = [name for name in types if name not in _BLOCKS]
    if unknown:
        found.append(f"it has blocks of type {unknown[0]}")
    elif attention[: len(widths)] != attention[len(widths) :][::-1]:
        found.append("encoder and decoder have attention at different levels")
    return found


def _prepare(model: KLVAE | VQVAE, family: str | None) -> list[str]:
    """Makes a model's normalisation one shift and one scale, in place; returns remarks.

    Raises:
        ValueError: the layout cannot hold the model, or its scale by channel.
    """
    if found := ldm_objections(model):
        fits = model.fits_stock_class
        remedy = "Export it as diffusers" if fits else "Its own folder opens with latentae.load_autoencoder"
        raise ValueError(f"an LDM file cannot hold this model: {'; '.join(found)}. {remedy}")
    if family is not None:
        check_family(family, model.config.latent_channels)
    remarks = write_out_codebook(model)
    if read_normalisation(model) is None:
        told = "so the file does not tell it" if family is None else f"so readers take that of {family}"
        return [*remarks, f"the scale of the latents is not known, {told}; {MEASURE}"]
    if model.config.latents_mean is None or model.config.latents_std is None:
        return remarks
    # Two numbers is all that a file's metadata tells: a mean and a deviation by channel go into the weights.
    remark = fold_to(model, 0.0, model.config.scaling_factor)
    return [*remarks, remark] if remark else remarks


def write_ldm(model: KLVAE | VQVAE, path: Path, dtype: torch.dtype, family: str | None) -> None:
    """Writes the weights, with the normalisation and the model's config as metadata.

    Args:
        model: fit for the layout, with one shift and one scale.
        path: the ``.safetensors`` file.
        dtype: of the weights.
        family: name of the family, where one was given.
    """
    state = {name: tensor.to(dtype).contiguous() for name, tensor in to_ldm_names(model.state_dict()).items()}
    metadata = {"format": "pt", **config_metadata(json.loads(model.to_json_string()))}
    if model.config.scaling_factor is not None:
        metadata[SCALE_KEY] = repr(float(model.config.scaling_factor))
        metadata[SHIFT_KEY] = repr(float(model.config.shift_factor or 0.0))
    if family is not None:
        metadata[FAMILY_KEY] = family
    save_file(state, path, metadata=metadata)


def _reopen(path: Path, family: str | None) -> KLVAE | VQVAE:
    return load_autoencoder(path).float()


def _load_hint(model: KLVAE | VQVAE, path: Path, family: str | None) -> str:
    return f'latentae.load_autoencoder("{path}")'


def no_upcast(model: KLVAE | VQVAE) -> str | None:
    """None: a file in this layout cannot say that the model must run in float32."""
    return None


LDM = Format(
    is_folder=False,
    prepare=_prepare,
    write=write_ldm,
    reopen=_reopen,
    record_upcast=no_upcast,
    load_hint=_load_hint,
)
