"""Latent diffusion's autoencoder as plain functions of a file's tensors, to judge exports by.

Written down from the model's description (arXiv 2112.10752, appendix G), sharing no code with the models.
"""

import torch
import torch.nn.functional as F


def encode(state, images, levels, blocks):
    """Mean and log-variance [B, 2c, h, w] of images; with quant_conv where there is one."""
    h = conv(state, "encoder.conv_in", images)
    for level in range(levels):
        for block in range(blocks):
            h = resnet(state, f"encoder.down.{level}.block.{block}", h)
        if level < levels - 1:
            h = conv(
                state, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0
            )
    h = out(state, "encoder", middle(state, "encoder", h))
    return conv(state, "quant_conv", h, padding=0) if "quant_conv.weight" in state else h


def decode(state, latents, levels, blocks):
    """Images of latents; with post_quant_conv where there is one."""
    if "post_quant_conv.weight" in state:
        latents = conv(state, "post_quant_conv", latents, padding=0)
    h = middle(state, "decoder", conv(state, "decoder.conv_in", latents))
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = resnet(state, f"decoder.up.{level}.block.{block}", h)
        if level > 0:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = conv(state, f"decoder.up.{level}.upsample.conv", h)
    return out(state, "decoder", h)


def shapes(channels, multipliers, blocks, latent_channels, convs):
    """Name to shape of all tensors of a file whose images have three channels."""
    found, widths = {}, [channels * factor for factor in multipliers]
    last, z = widths[-1], latent_channels

    def add(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def add_resnet(name, before, after):
        add(f"{name}.norm1", before)
        add(f"{name}.conv1", after, before, 3, 3)
        add(f"{name}.norm2", after)
        add(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            add(f"{name}.nin_shortcut", after, before, 1, 1)

    for side, moments in (("encoder", 2 * z), ("decoder", 3)):
        add_resnet(f"{side}.mid.block_1", last, last)
        add_resnet(f"{side}.mid.block_2", last, last)
        add(f"{side}.mid.attn_1.norm", last)
        for layer in ("q", "k", "v", "proj_out"):
            add(f"{side}.mid.attn_1.{layer}", last, last, 1, 1)
        end = last if side == "encoder" else channels
        add(f"{side}.norm_out", end)
        add(f"{side}.conv_out", moments, end, 3, 3)
    add("encoder.conv_in", channels, 3, 3, 3)
    add("decoder.conv_in", last, z, 3, 3)
    for level, width in enumerate(widths):
        for block in range(blocks):
            add_resnet(
                f"encoder.down.{level}.block.{block}",
                widths[max(0, level - 1)] if block == 0 else width,
                width,
            )
        for block in range(blocks + 1):
            below = widths[min(level + 1, len(widths) - 1)]
            add_resnet(f"decoder.up.{level}.block.{block}", below if block == 0 else width, width)
        if level < len(widths) - 1:
            add(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
        if level > 0:
            add(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    if convs:
        add("quant_conv", 2 * z, 2 * z, 1, 1)
        add("post_quant_conv", z, z, 1, 1)
    return found


def conv(state, name, h, stride=1, padding=None):
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(h, weight, state[f"{name}.bias"], stride, padding)


def norm(state, name, h):
    return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def resnet(state, name, h):
    x = conv(state, f"{name}.conv1", F.silu(norm(state, f"{name}.norm1", h)))
    x = conv(state, f"{name}.conv2", F.silu(norm(state, f"{name}.norm2", x)))
    return x + (conv(state, f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in state else h)


def middle(state, side, h):
    h = resnet(state, f"{side}.mid.block_1", h)
    x = norm(state, f"{side}.mid.attn_1.norm", h)
    query, key, value = (conv(state, f"{side}.mid.attn_1.{layer}", x).flatten(2) for layer in "qkv")
    weights = torch.softmax(query.mT @ key / query.shape[1] ** 0.5, dim=-1)
    mixed = (value @ weights.mT).view_as(h)
    return resnet(state, f"{side}.mid.block_2", h + conv(state, f"{side}.mid.attn_1.proj_out", mixed))


def out(state, side, h):
    return conv(state, f"{side}.conv_out", F.silu(norm(state, f"{side}.norm_out", h)))
