"""The formats of KL-VAEs and VQ models: folders of the stock class and of ours, LDM's file and ComfyUI's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.vae import Encoder
from safetensors.torch import load_file, save_file
from torch import nn

from latentae.export.prepare import FLUX2, MEASURE, fold_to, read_normalisation, write_out_codebook
from latentae.models import KLVAE, VQVAE, Autoencoder, Flux2VAE, load_autoencoder
from latentae.models.checkpoints.configs import config_metadata, embed_config
from latentae.models.checkpoints.families import FAMILIES, FAMILY_KEY, SCALE_KEY, SHIFT_KEY, check_family
from latentae.models.checkpoints.layouts import to_diffusers_names, to_flux2_names, to_ldm_names
from latentae.models.decoders import DecoderShape

_HAS_ATTENTION = {  # by type of block
    "DownEncoderBlock2D": False,
    "UpDecoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
    "AttnUpDecoderBlock2D": True,
}
_COMFYUI_MULTIPLES = {3: (1, 2, 4), 4: (1, 2, 4, 4)}  # of the first width, by the number of levels
_COMFYUI_WIDTHS = {levels: tuple(128 * n for n in each) for levels, each in _COMFYUI_MULTIPLES.items()}


class Format:
    """One format. ``family`` is None or the name of a known family in all methods.

    Attributes:
        is_folder: whether a folder is written, not a ``.safetensors`` file.
        holder: what errors call that which holds the model.
    """

    is_folder = False
    holder: str

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        """Returns the reasons why the format cannot hold a model, as clauses; none where it can."""
        raise NotImplementedError

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        """Changes a float32 copy of a model that the format can hold, in place, to what will be written.

        Returns:
            remarks.

        Raises:
            ValueError: a family that does not fit the model, or a scale that is needed and not known.
        """
        raise NotImplementedError

    def write(self, model: Autoencoder, path: Path, dtype: torch.dtype, family: str | None) -> None:
        """Writes a prepared model, rounded to ``dtype``."""
        raise NotImplementedError

    def reopen(self, path: Path, family: str | None) -> Autoencoder:
        """Returns the model that the format's readers get, in eval mode and float32."""
        raise NotImplementedError

    def record_upcast(self, model: Autoencoder) -> str | None:
        """Records, in place, that programs must run the model in float32 where they use float16.

        Returns:
            A remark; None where neither the format nor its readers can record that.
        """
        return None

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        """Returns one line on how to load the file or folder."""
        raise NotImplementedError


class Diffusers(Format):
    """A folder that diffusers loads without latentae."""

    is_folder = True
    holder = "a diffusers folder"

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        # AutoencoderKLFlux2 could hold a KL-VAE's narrow decoder, but no pipeline of other families takes it:
        # it has neither a scaling_factor nor a shift_factor.
        return [] if model.stock_objection is None else [model.stock_objection]

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        """Folds what the stock class's config cannot hold; see ``Format``."""
        remarks = write_out_codebook(model) + prepare_config(model, family)
        config = model.config
        if not isinstance(model, VQVAE) or config.scaling_factor is None:
            return remarks
        if config.shift_factor or config.latents_mean is not None:  # a VQModel's config can hold a scale only
            remark = fold_to(model, 0.0, config.scaling_factor)
            remarks += [remark] if remark else []
        return remarks

    def write(self, model: Autoencoder, path: Path, dtype: torch.dtype, family: str | None) -> None:
        export_diffusers(model, path, dtype)

    def reopen(self, path: Path, family: str | None) -> Autoencoder:
        return cast(Autoencoder, load_autoencoder(path, torch_dtype=torch.float32))

    def record_upcast(self, model: Autoencoder) -> str | None:
        """Sets ``force_upcast``, unless SDXL pipelines would then look for a missing ``post_quant_conv``."""
        if model.post_quant_conv is None or isinstance(model, Flux2VAE):  # TinyAutoencoder has none, too
            return None
        model.change_config(force_upcast=True)
        return (
            "force_upcast is on, so SDXL pipelines run it in float32; every other program must load it in "
            "bfloat16 or float32"
        )

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        stock = model._stock_class.__name__
        return f'diffusers.{stock}.from_pretrained("{path}")'


def prepare_config(model: Autoencoder, family: str | None) -> list[str]:
    """Changes what pipelines could not use in the config of a folder, in place; returns remarks."""
    if isinstance(model, Flux2VAE):  # its statistics are tensors
        return [f"family {family} changes nothing: {FLUX2}"] if family is not None else []
    remarks, config, own = [], model.config, read_normalisation(model)
    if family is not None:
        named = FAMILIES[family]
        if own is None or bool((own.scale != named.scale).any() or (own.shift != named.shift).any()):
            remarks.append(
                f"family {family} changes nothing in this format, since its config records scale and shift"
            )
    if own is None:
        remarks.append(
            f"the scale of the latents is not known, and pipelines need it: {MEASURE}, or name the family "
            "that the model comes from by --family"
        )
    if isinstance(model, KLVAE):
        if config.shift_factor is None:
            model.change_config(shift_factor=0.0)  # SD 3 and FLUX pipelines compute with it
        if config.force_upcast and model.post_quant_conv is None:
            model.change_config(force_upcast=False)
            remarks.append(
                "force_upcast is off, since SDXL pipelines look for post_quant_conv where it is on"
            )
    return remarks


def export_diffusers(autoencoder: Autoencoder, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors`` of the stock class into ``path``.

    The weights' metadata also hold the config, so that the file can be opened alone.

    Args:
        autoencoder: stays as it is.
        path: the folder.
        dtype: of the weights; None leaves them as they are.

    Raises:
        ValueError: no stock class can hold the weights.
    """
    stock = autoencoder.to_diffusers()
    if dtype is not None:
        nn.Module.to(stock, dtype)  # ModelMixin's own warns of modules to keep in float32; there are none
    stock.save_pretrained(str(path))
    embed_config(path)


class Latentae(Diffusers):
    """A folder of our own class, which holds every model."""

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        return []

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        return prepare_config(model, family)

    def write(self, model: Autoencoder, path: Path, dtype: torch.dtype, family: str | None) -> None:
        rounded = copy.deepcopy(model)
        nn.Module.to(rounded, dtype)
        rounded.save_pretrained(path)

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        return f'latentae.load_autoencoder("{path}")'


class LDM(Format):
    """A single file in the layout of latent diffusion and taming, which most programs read."""

    holder = "an LDM file"

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        return ldm_objections(model)

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        """Makes a model's normalisation one shift and one scale; see ``Format``."""
        if isinstance(model, Flux2VAE):
            if family is not None:
                raise ValueError(f"family is {family!r}, but {FLUX2}: leave family out")
            return []
        if family is not None:
            check_family(family, model.config.latent_channels)
        remarks = write_out_codebook(model)
        if read_normalisation(model) is None:
            effect = "the file does not record it" if family is None else f"readers use that of {family}"
            return [*remarks, f"the scale of the latents is not known, so {effect}; {MEASURE}"]
        if model.config.latents_mean is None or model.config.latents_std is None:
            return remarks
        # The metadata hold two numbers: a mean and a deviation per channel are folded into the weights.
        remark = fold_to(model, 0.0, model.config.scaling_factor)
        return [*remarks, remark] if remark else remarks

    def write(self, model: Autoencoder, path: Path, dtype: torch.dtype, family: str | None) -> None:
        """Writes the weights, with the normalisation and the model's config as metadata."""
        rename = to_flux2_names if isinstance(model, Flux2VAE) else to_ldm_names
        state = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in rename(model.state_dict()).items()
        }
        metadata = {"format": "pt", **config_metadata(json.loads(model.to_json_string()))}
        if not isinstance(model, Flux2VAE) and model.config.scaling_factor is not None:
            metadata[SCALE_KEY] = repr(float(model.config.scaling_factor))
            metadata[SHIFT_KEY] = repr(float(model.config.shift_factor or 0.0))
        if family is not None:
            metadata[FAMILY_KEY] = family
        save_file(state, path, metadata=metadata)

    def reopen(self, path: Path, family: str | None) -> Autoencoder:
        return cast(Autoencoder, load_autoencoder(path).float())

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        return f'latentae.load_autoencoder("{path}")'


def ldm_objections(model: Autoencoder) -> list[str]:
    """Returns the reasons why latent diffusion's layout cannot hold a model; none where it can.

    Readers of the file have no config: they assume 32 groups, SiLU and so on.
    """
    found = _layout_objections(model)
    if isinstance(model, KLVAE) and model.stock_objection is not None:
        found.append("its decoder is not the mirror of its encoder, which readers of the file assume")
    return found


def _layout_objections(model: Autoencoder) -> list[str]:
    """Returns what ``ldm_objections`` does, whatever the shape of a KL-VAE's decoder."""
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
    attention = [_HAS_ATTENTION.get(name) for name in types]
    if unknown := [name for name in types if name not in _HAS_ATTENTION]:
        found.append(f"it has blocks of type {unknown[0]}")
    elif attention[: len(widths)] != attention[len(widths) :][::-1]:
        found.append("encoder and decoder have attention at different levels")
    return found


class ComfyUI(LDM):
    """A single file for ComfyUI, whose loader assumes a family's architecture and normalisation.

    The loader's rules are repeated here. A file in latent diffusion's layout with ``decoder.conv_in.weight``
    is a KL-VAE of width 128 with two residual blocks per level, attention in the middle only, and three or
    four levels. The decoder's width follows from its first convolution, as for FLUX.2's small decoder; its
    images are as large as the encoder's. The model has convolutions around the latents if there is a
    ``post_quant_conv.weight``. Scale and shift are constants of the diffusion model's family.
    """

    holder = "ComfyUI"

    def objections(self, model: Autoencoder, family: str | None) -> list[str]:
        if family is None:  # those of the family that the model is closest to
            return min((comfyui_objections(model, name) for name in FAMILIES), key=len)
        return comfyui_objections(model, family)

    def prepare(self, model: Autoencoder, family: str | None) -> list[str]:
        """Folds a model's normalisation so that the family's constants hold; see ``Format``.

        Raises:
            ValueError: no family, or a model whose scale is not known.
        """
        if family is None:
            raise ValueError(f"format comfyui needs a family, one of {', '.join(FAMILIES)}")
        if read_normalisation(model) is None:
            raise ValueError(
                "the scale of this model's latents is not known, and ComfyUI applies its own: "
                f"{MEASURE}, or name the family that it comes from: load_autoencoder(path, family='sd1')"
            )
        remark = fold_to(model, FAMILIES[family].shift, FAMILIES[family].scale)
        remarks = [remark] if remark else []
        if model.stock_objection is not None:
            remarks.append(
                "the decoder has other widths than usual: a ComfyUI too old for FLUX.2's small decoder stops "
                "with an error about sizes"
            )
        if len(model.config.block_out_channels) == 3:
            remarks.append("one latent is 4x4 pixels, while nodes that make empty latents assume 8x8")
        return remarks

    def reopen(self, path: Path, family: str | None) -> KLVAE:
        """Builds the model that ComfyUI makes of the file, with the family's normalisation in its config.

        Raises:
            RuntimeError: tensors are missing, unexpected or of another shape.
        """
        assert family is not None  # prepare has checked it
        state = load_file(path)
        f8 = "encoder.down.2.downsample.conv.weight" in state or "decoder.up.3.upsample.conv.weight" in state
        levels = 4 if f8 else 3
        widths, multiples = _COMFYUI_WIDTHS[levels], _COMFYUI_MULTIPLES[levels]
        first = state["decoder.conv_in.weight"].shape[0] // multiples[-1]
        convs = "post_quant_conv.weight" in state
        model = KLVAE(
            block_out_channels=widths,
            decoder_block_out_channels=tuple(first * multiple for multiple in multiples),
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

    def load_hint(self, model: Autoencoder, path: Path, family: str | None) -> str:
        return f"put {path} into ComfyUI/models/vae and choose it in the Load VAE node of a {family} workflow"


def comfyui_objections(model: Autoencoder, family: str) -> list[str]:
    """Returns the reasons why ComfyUI cannot hold a model as the VAE of a family; none where it can."""
    if not isinstance(model, KLVAE):
        return [f"it is a {type(model).__name__}, and ComfyUI's VAEs of these families are KL-VAEs"]
    if isinstance(model, Flux2VAE):
        return [f"{FLUX2}; ComfyUI reads it in the layout of FLUX.2's own file, which format ldm has"]
    config = model.config
    found = _layout_objections(model) + _comfyui_decoder_objections(config)
    if tuple(config.block_out_channels) not in _COMFYUI_WIDTHS.values():
        found.append(
            f"block_out_channels is {list(config.block_out_channels)}, not "
            f"{' or '.join(str(list(widths)) for widths in _COMFYUI_WIDTHS.values())}"
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


def _comfyui_decoder_objections(config: Any) -> list[str]:
    """Returns the reasons why ComfyUI cannot hold a decoder that is not the encoder's mirror."""
    shape, found = DecoderShape.of(config), []
    if shape.upscale > 1:
        found.append(
            f"its decoder's images are {shape.upscale} times as large as the encoder's, and ComfyUI reads no "
            "such VAE of single images"
        )
    multiples = _COMFYUI_MULTIPLES.get(len(shape.widths))
    if multiples and shape.widths != tuple(shape.widths[0] * n for n in multiples):
        found.append(
            f"its decoder's widths are {list(shape.widths)}, not {list(multiples)} times the first of them"
        )
    if shape.layers_per_block != config.layers_per_block:
        found.append(f"its decoder's layers_per_block is {shape.layers_per_block}, not 2")
    return found
