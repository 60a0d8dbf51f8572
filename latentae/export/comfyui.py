"""A single file for ComfyUI, whose loader takes a family's architecture and normalisation for granted.

What its loader does is repeated here: a file in latent diffusion's layout with ``decoder.conv_in.weight`` is
a KL-VAE of width 128 with two residual blocks a level, attention in the middle alone, and three or four
levels; ``post_quant_conv.weight`` decides whether there are convolutions around the latents. Scale and shift
are constants of the diffusion model's family.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from latentae.export.format import Format
from latentae.export.ldm import ldm_objections, no_upcast, write_ldm
from latentae.export.normalisation import MEASURE, fold_to, read_normalisation
from latentae.models import KLVAE, VQVAE
from latentae.models.checkpoints.families import FAMILIES
from latentae.models.checkpoints.names import to_diffusers_names

_WIDTHS = {3: (128, 256, 512), 4: (128, 256, 512, 512)}  # by the number of levels


def comfyui_objections(model: KLVAE | VQVAE, family: str) -> list[str]:
    """Why ComfyUI cannot hold a model as the VAE of a family; nothing where it can."""
    if not isinstance(model, KLVAE):
        return [f"it is a {type(model).__name__}, and ComfyUI's VAEs of these families are KL-VAEs"]
    config = model.config
    found = ldm_objections(model)
    if tuple(config.block_out_channels) not in _WIDTHS.values():
        found.append(
            f"block_out_channels is {list(config.block_out_channels)}, not "
            f"{' or '.join(str(list(widths)) for widths in _WIDTHS.values())}"
        )
    if config.layers_per_block != 2:
        found.append(f"layers_per_block is {config.layers_per_block}, not 2")
    if any(name.startswith("Attn") for name in (*config.down_block_types, *config.up_block_types)):
        found.append("it has attention outside of the middle block")
    channels = FAMILIES[family].latent_channels
    if config.latent_channels != channels:
        found.append(f"latent_channels is {config.latent_channels}, and {family} has {channels}")
    if (config.in_channels, config.out_channels) != (3, 3):
        found.append(f"images have {config.in_channels} channels, not 3")
    return found


def _prepare(model: KLVAE | VQVAE, family: str | None) -> list[str]:
    """Folds a model's normalisation, in place, so that the family's constants hold; returns remarks.

    Raises:
        ValueError: no family, a model that ComfyUI cannot hold, or one whose scale is not known.
    """
    if family is None:
        raise ValueError(f"format comfyui needs a family, one of {', '.join(FAMILIES)}")
    if found := comfyui_objections(model, family):
        raise ValueError(f"ComfyUI cannot hold this model as {family}: {'; '.join(found)}")
    if read_normalisation(model) is None:
        raise ValueError(
            "the scale of this model's latents is not known, and ComfyUI applies its own: "
            f"{MEASURE}, or name the family that it comes from: load_autoencoder(path, family='sd1')"
        )
    remark = fold_to(model, FAMILIES[family].shift, FAMILIES[family].scale)
    remarks = [remark] if remark else []
    if len(model.config.block_out_channels) == 3:
        remarks.append("one latent is 4x4 pixels, while nodes that make empty latents count with 8x8")
    return remarks


def read_as_comfyui(path: Path, family: str | None) -> KLVAE:
    """The model that ComfyUI makes of a file, with the family's normalisation in its config.

    Raises:
        RuntimeError: tensors that are missing, left over or of another shape.
    """
    assert family is not None  # _prepare has seen to it
    state = load_file(path)
    f8 = "encoder.down.2.downsample.conv.weight" in state or "decoder.up.3.upsample.conv.weight" in state
    widths = _WIDTHS[4 if f8 else 3]
    convs = "post_quant_conv.weight" in state
    model = KLVAE(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=state["decoder.conv_in.weight"].shape[1],
        use_quant_conv=convs,
        use_post_quant_conv=convs,
        scaling_factor=FAMILIES[family].scale,
        shift_factor=FAMILIES[family].shift,
    )
    model.load_state_dict(to_diffusers_names(state))
    return model.eval()


def _load_hint(model: KLVAE | VQVAE, path: Path, family: str | None) -> str:
    return f"put {path} into ComfyUI/models/vae and choose it in the Load VAE node of a {family} workflow"


COMFYUI = Format(
    is_folder=False,
    prepare=_prepare,
    write=write_ldm,
    reopen=read_as_comfyui,
    record_upcast=no_upcast,
    load_hint=_load_hint,
)
