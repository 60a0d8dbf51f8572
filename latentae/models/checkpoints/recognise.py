"""What a file that is no autoencoder looks like, in words."""

from __future__ import annotations

import re
from collections.abc import Collection

_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer in place of the file: run git lfs pull",
    b"GGUF": "is a GGUF file",
    b"\x89PNG": "is a PNG image",
    b"\xff\xd8\xff": "is a JPEG image",
    b"\x1f\x8b": "is a gzip archive",
    b"7z\xbc\xaf": "is a 7-Zip archive",
    b"Rar!": "is a RAR archive",
    b"\x89HDF": "is an HDF5 file",
    b"\x93NUMPY": "is a NumPy array",
}

_SHOWN = 6  # groups of names
# By the first pattern that a name matches; the more telling come first.
_CONTENTS = {
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


def describe_bytes(head: bytes) -> str:
    """What a file that begins with these bytes, at most a few hundred, is: "is empty", "is a PNG image"."""
    if not head:
        return "is empty"
    if not any(head):
        return "begins with nothing but zeros, as a download does that was never finished"
    for beginning, words in _BEGINNINGS.items():
        if head.startswith(beginning):
            return words
    text = head.decode("utf-8", errors="replace").strip()
    if text.lower().startswith(("<!doctype", "<html", "<head", "<?xml")):
        return "is a web page, such as a login or error page in place of the download"
    if all(character.isprintable() or character.isspace() for character in text):
        return f"is a text that begins {text[:40]!r}"
    return f"begins with the bytes {head[:8].hex(' ')}, as no format of weights does"


def describe_contents(names: Collection[str]) -> str:
    """What tensors of these names belong to: "looks like a LoRA …", with their number and a few of the names.

    Where the first parts of the names differ, as those of a trainer's mappings do, the tensors of each are
    counted.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        first, dot, _ = name.partition(".")
        groups.setdefault(first if dot else "", []).append(name)
    largest = sorted(groups, key=lambda group: -len(groups[group]))
    lines = [f"{shorten(group) or 'no name'} {len(groups[group])}" for group in largest[:_SHOWN]]
    more = f" and {len(groups) - _SHOWN} others" if len(groups) > _SHOWN else ""
    examples = ", ".join(shorten(name) for name in sorted(names)[:3])
    # A few odd names among many say little: a trainer's discriminator beside its denoiser.
    kind = _kind(
        [name for group in groups.values() if len(group) == len(groups[largest[0]]) for name in group]
    )
    words = f"looks like {kind}" if kind else "holds something unknown"
    by_group = f"; by the first part of their names: {', '.join(lines)}{more}" if len(groups) > 1 else ""
    return f"{words} ({len(names)} tensors, such as {examples}{by_group})"


def shorten(name: str) -> str:
    """A name of at most 80 characters, for messages."""
    return name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}"


def _kind(names: Collection[str]) -> str | None:
    for what, pattern in _CONTENTS.items():
        if any(re.search(pattern, name) for name in names):
            return what
    return None
