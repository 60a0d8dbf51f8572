"""Finds the autoencoder among the tensors of a checkpoint, and translates the names of its tensors.

There are two layouts: latent diffusion's, which taming shares, and diffusers'. They hold the same tensors
with two differences. The decoder's levels are numbered from the image's resolution in one and from the
latents' in the other. The attention's projections are 1×1 convolutions in one and linear layers in the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

# Both layouts have these two tensors, and hardly any other model has both.
_ENCODER = "encoder.conv_in.weight"
_DECODER = "decoder.conv_in.weight"

# Names under which whole checkpoints keep the autoencoder, the most certain first: LDM and Stable Diffusion,
# then ComfyUI and trainers, then trainers; "" is an autoencoder without a name.
_RANKS = {
    "first_stage_model": 0,
    **dict.fromkeys(("vae", "vqvae", "vqgan", "movq", "autoencoder", "ae", "tokenizer"), 1),
    "model": 2,
    "": 3,
}
_OTHER_RANK = 4
# Parts of names that do not say what is below them: trainers' mappings, and kinds of weights.
_NEUTRAL = re.compile(r"state_dict|model_state_dict|params|generator|net|network|online_model")
_AVERAGES = re.compile(r"(.+_)?ema(_.+)?|averag\w+|shadow\w*")

# What training keeps beside the autoencoder and images do not depend on: losses with their discriminator and
# LPIPS, averaged weights, the network that VA-VAE aligns latents with, counters of a codebook trained by
# averages, LDM's colours of segmentation maps, and the normalisation of FLUX.2's latents.
_TRAINING = re.compile(
    r"(\w*loss\w*|(\w+_)?ema(_\w+)?|disc\w*|perceptual\w*|lpips\w*|foundation_model|linear_proj|bn)\..*"
    r"|quantize\.(embedding\.)?(cluster_size|embed_avg|ema_\w+)|quantize\.used|colorize"
)
FLUX2_MEAN = "bn.running_mean"
FLUX2_STATISTICS = (FLUX2_MEAN, "bn.running_var", "bn.num_batches_tracked")
"""Tensors that normalise FLUX.2's latents."""
# FLUX.2's own file has the convolutions around the latents inside of the encoder and the decoder.
_NESTED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
_FLATTENED = re.compile(r"(.*\.)?_?flat_param(_\d+)?")

# Models that are often mistaken for an autoencoder, by the first pattern that matches a name. The more
# specific patterns come first.
_OTHER_MODELS = {
    "a LoRA or the like: changes to a model, not a model": r"lora_|\.lora\.|\.(hada_w|lokr_w)\d|\.oft_",
    "a ControlNet": r"^control_model\.|controlnet_|^input_hint_block\.",
    "an IP-Adapter": r"^(ip_adapter|image_proj)\.",
    "a textual inversion": r"^(emb_params|string_to_param|clip_[lg])$",
    "a video autoencoder": r"\.time_stack\.|\.time_conv\.|coder\.conv_in\.conv\.|coder\.conv1\.",
    "a UNet or transformer, a denoiser without its autoencoder": (
        r"^(model\.)?diffusion_model\.|^(input|output|joint|double|single|transformer)_blocks\.|^time_embed"
    ),
    "a text encoder": r"text_model\.|token_embedding|embed_tokens|SelfAttention|\.resblocks\.",
    "an image encoder": r"^vision_model\.|^visual\.",
    "LlamaGen's tokenizer, which has another backbone": r"coder\.conv_blocks\.",
    "DC-AE, which has another backbone": r"coder\.stages\.",
    "a discriminator": r"^(loss\.)?discriminator\.|^main\.\d+\.weight",
    "an upscaler": r"\.rdb\d\.|\.RDB\d\.|^conv_body\.",
}
_MAX_GROUPS = 6  # of names that a message lists

# Parts of names in latent diffusion's layout and in diffusers'; # stands for a number.
_NAMES = (
    ("encoder.down.#.", "encoder.down_blocks.#."),
    ("decoder.up.#.", "decoder.up_blocks.#."),  # numbered in the opposite direction
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".block.#.", ".resnets.#."),
    (".attn.#.", ".attentions.#."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# diffusers' own names before version 0.18, which many published files still have.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_LDM_NAME = re.compile(r"(.*\.)?encoder\.down\.\d+\.block\..*")
_LDM_PROJECTION = re.compile(r".*\.(attn\.\d+|attn_1)\.(q|k|v|proj_out)\.weight")
_PROJECTION = re.compile(r".*\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")


# --- finding the autoencoder ---


def find_autoencoder(
    tensors: Mapping[str, Tensor], *, ema: bool = False, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """Returns the autoencoder's tensors under diffusers' names, without the prefix of a whole checkpoint.

    Args:
        tensors: a checkpoint's, in latent diffusion's or diffusers' layout.
        ema: take averaged weights: LDM's ``model_ema.*``, or those under a name such as ``ema_model``.
        keep: names that the model has. Other tensors that only training needs are left out.

    Raises:
        ValueError: there is no autoencoder, or half of one, or no averaged weights; the message says what the
            tensors look like.
    """
    prefix = find_prefix(tensors, ema=ema)
    nested = [other for other in _complete_prefixes(tensors) if other != prefix and other.startswith(prefix)]
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(tuple(nested))
    }
    state = {
        name: tensor for name, tensor in inside.items() if name in keep or not is_for_training(name, tensor)
    }
    if ema and not is_average(prefix):
        # LDM stores averages inside the model, under the weights' names without their dots.
        places = {name: f"model_ema.{name.replace('.', '')}" for name in state}
        if missing := [name for name, place in places.items() if place not in inside]:
            raise ValueError(
                f"variant is 'ema', but {len(missing)} of {len(state)} tensors have no average, such as "
                f"{missing[0]}. Omit variant to read the plain weights"
            )
        state = {name: inside[place] for name, place in places.items()}
    return to_diffusers_names(state)


def find_prefix(tensors: Mapping[str, Tensor], *, ema: bool = False) -> str:
    """Returns the prefix of the autoencoder's tensors; arguments and errors as in ``find_autoencoder``."""
    complete = _complete_prefixes(tensors)
    if not complete:
        raise ValueError(_describe_failure(tensors))
    averages = {prefix for prefix in complete if is_average(prefix)}
    # Without plain weights, the averages are all there is. LDM's own averages lie inside the plain ones.
    chosen = (averages if ema else complete - averages) or complete
    best = min(map(_rank, chosen))
    candidates = sorted(prefix for prefix in chosen if _rank(prefix) == best)
    if len(candidates) > 1:
        names = ", ".join(shorten(prefix) for prefix in candidates[:4])
        raise ValueError(f"holds several autoencoders, under {names}: save one by itself")
    return candidates[0]


def is_for_training(name: str, tensor: Tensor) -> bool:
    """Whether only training needs the tensor of this name (without a prefix); counters are included."""
    return _TRAINING.fullmatch(name) is not None or (tensor.ndim == 0 and "." not in name)


def is_average(prefix: str) -> bool:
    """Whether a prefix names averaged weights; its innermost part that says so decides."""
    for part in reversed(prefix.split(".")):
        if part == "online_model":
            return False
        if _AVERAGES.fullmatch(part):
            return True
    return False


def is_ldm_layout(names: Collection[str]) -> bool:
    """Whether tensors of these names hold an autoencoder in latent diffusion's layout."""
    return any(_LDM_NAME.fullmatch(name) for name in names)


def _complete_prefixes(tensors: Mapping[str, Tensor]) -> set[str]:
    """Returns the prefixes under which there are both an encoder and a decoder."""
    return _prefixes(tensors, _ENCODER) & _prefixes(tensors, _DECODER)


def _prefixes(tensors: Mapping[str, Tensor], name: str) -> set[str]:
    found = {key.removesuffix(name) for key in tensors if key.endswith(name)}
    return {prefix for prefix in found if prefix == "" or prefix.endswith(".")}


def _rank(prefix: str) -> int:
    """Ranks a prefix by its innermost telling part; 0 is certain to be the autoencoder of a checkpoint."""
    parts = [
        part
        for part in prefix.split(".")
        if part and not _NEUTRAL.fullmatch(part) and not _AVERAGES.fullmatch(part)
    ]
    return _RANKS.get(parts[-1] if parts else "", _OTHER_RANK)


# --- saying what else a checkpoint holds ---


def describe_contents(names: Collection[str]) -> str:
    """Says what tensors of these names belong to: "looks like a LoRA …", their number and a few names.

    Where the names begin with different parts, as those of a trainer's mappings do, the tensors of each part
    are counted.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        first, dot, _ = name.partition(".")
        groups.setdefault(first if dot else "", []).append(name)
    largest = sorted(groups, key=lambda group: -len(groups[group]))
    # Only the largest groups count: a few odd names, such as a trainer's discriminator, say little.
    telling = [name for group in groups.values() if len(group) == len(groups[largest[0]]) for name in group]
    kinds = (
        kind for kind, pattern in _OTHER_MODELS.items() if any(re.search(pattern, name) for name in telling)
    )
    kind = next(kinds, None)
    words = f"looks like {kind}" if kind else "holds something unknown"
    examples = ", ".join(shorten(name) for name in sorted(names)[:3])
    by_group = ""
    if len(groups) > 1:
        counts = [f"{shorten(group) or 'no name'} {len(groups[group])}" for group in largest[:_MAX_GROUPS]]
        more = f" and {len(groups) - _MAX_GROUPS} others" if len(groups) > _MAX_GROUPS else ""
        by_group = f"; by the first part of their names: {', '.join(counts)}{more}"
    return f"{words} ({len(names)} tensors, such as {examples}{by_group})"


def adapter_remedy(names: Collection[str]) -> str:
    """Says what to do about adapters beside the weights; empty where no tensor's name shows any."""
    if not any(".base_layer." in name for name in names):
        return ""
    return (
        ": adapters (LoRA or the like) were saved beside the weights. Merge them before saving, with "
        "export_autoencoder or to_diffusers"
    )


def shorten(name: str) -> str:
    """Shortens a name to at most 80 characters, for messages."""
    return name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}"


def _describe_failure(tensors: Mapping[str, Tensor]) -> str:
    """Says what a checkpoint without an autoencoder holds instead."""
    flattened = [name for name in tensors if _FLATTENED.fullmatch(name)]
    if flattened:
        return (
            f"holds {len(flattened)} flattened parameters of FSDP, such as {shorten(flattened[0])}, perhaps "
            "of one rank only: save a full state dict (StateDictType.FULL_STATE_DICT)"
        )
    what = describe_contents(tensors)
    for side in (_ENCODER, _DECODER):
        if _prefixes(tensors, side):
            word = side.split(".")[0]
            return f"holds the {word} of an autoencoder without its other half: it {what}"
    return f"holds no autoencoder: it {what}"


# --- translating names ---


def to_diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames an autoencoder's tensors from latent diffusion's to diffusers' names; copies nothing.

    Args:
        state: tensors under names such as ``encoder.down.0.block.0.norm1.weight``, without a prefix. It must
            hold the whole decoder, whose levels are counted. Other names stay as they are, except diffusers'
            old names of the attention's parts, which become the present ones.
    """
    translated = {}
    levels = _count_levels(state, "decoder.up.")
    for name, tensor in state.items():
        for nested, plain in _NESTED.items():
            if name.startswith(nested):
                name = plain + name.removeprefix(nested)
        name = _reverse_level(name, "decoder.up.", levels)
        name = _rename_attention(_apply(_TO_DIFFUSERS, name), {**_ATTENTION, **_OLD_ATTENTION})
        if _PROJECTION.fullmatch(name) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        translated[name] = tensor
    if FLUX2_MEAN in translated:  # the counter is not used, and some programs leave it out
        translated.setdefault(FLUX2_STATISTICS[2], torch.zeros((), dtype=torch.int64))
    return translated


def to_ldm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames an autoencoder's tensors to latent diffusion's names: undoes ``to_diffusers_names``.

    Args:
        state: tensors under the names of ``KLVAE``, ``VQGAN`` and diffusers' AutoencoderKL and VQModel. It
            must hold the whole decoder, whose levels are counted. Other names stay as they are.
    """
    translated = {}
    levels = _count_levels(state, "decoder.up_blocks.")
    attention = {diffusers: ldm for ldm, diffusers in _ATTENTION.items()}
    for name, tensor in state.items():
        name = _reverse_level(name, "decoder.up_blocks.", levels)
        name = _apply(_TO_LDM, _rename_attention(name, attention))
        if _LDM_PROJECTION.fullmatch(name) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        translated[name] = tensor
    return translated


def to_flux2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ``Flux2VAE``'s tensors to the names in FLUX.2's own file; as ``to_ldm_names``."""
    nest = {plain: nested for nested, plain in _NESTED.items()}
    translated = {}
    for name, tensor in to_ldm_names(state).items():
        for plain, nested in nest.items():
            if name.startswith(plain):
                name = nested + name.removeprefix(plain)
        translated[name] = tensor
    return translated


def check_flux2(tensors: Mapping[str, Tensor], prefix: str, *, is_flux2: bool = False) -> None:
    """Checks that an autoencoder with FLUX.2's names also has the statistics of its latents.

    Args:
        tensors: of a whole checkpoint.
        prefix: of the autoencoder's tensors.
        is_flux2: whether a config says so; names need not show it then.

    Raises:
        ValueError: some of them are missing; the message names one.
    """
    own = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    is_flux2 = is_flux2 or FLUX2_MEAN in own or any(name.startswith(tuple(_NESTED)) for name in own)
    missing = [name for name in FLUX2_STATISTICS[:2] if name not in own]
    if is_flux2 and missing:
        raise ValueError(
            f"is a FLUX.2 VAE, but lacks {missing[0]}, the statistics of its latents: take the "
            "published file, or one saved with its buffers"
        )


def _make_rules(names: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new.replace("#", r"\1")) for old, new in names
    ]


_TO_DIFFUSERS = _make_rules(_NAMES)
_TO_LDM = _make_rules((diffusers, ldm) for ldm, diffusers in _NAMES)


def _apply(rules: Iterable[tuple[re.Pattern[str], str]], name: str) -> str:
    if name.startswith(("encoder.", "decoder.")):
        for old, new in rules:
            name = old.sub(new, name, count=1)
    return name


def _rename_attention(name: str, names: Mapping[str, str]) -> str:
    """Replaces the name of an attention's part, such as ``q``, below ``attentions.#``."""
    return re.sub(
        r"(?<=\.)(attentions\.\d+)\.(to_out\.0|\w+)(?=\.)", lambda m: f"{m[1]}.{names.get(m[2], m[2])}", name
    )


def _count_levels(names: Iterable[str], before: str) -> int:
    """Returns one more than the highest number that follows ``before``."""
    numbers = (name.removeprefix(before).split(".")[0] for name in names if name.startswith(before))
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _reverse_level(name: str, before: str, levels: int) -> str:
    """Counts the level that follows ``before`` from the other end."""
    return re.sub(rf"^({re.escape(before)})(\d+)", lambda m: f"{m[1]}{levels - 1 - int(m[2])}", name)
