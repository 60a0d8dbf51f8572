"""Small autoencoders of many architectures, with random weights everywhere."""

import torch

from latentae import KLVAE, VQGAN

# What each differs in from KL f4 with three image channels; "class" picks the model.
ARCHITECTURES = {
    "KL f4": {},
    "KL f8": {"block_out_channels": (32, 64, 128, 128)},
    "KL f8 without quant convs": {
        "block_out_channels": (32, 64, 128, 128),
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "KL with one quant conv": {"use_quant_conv": False},
    "KL grey": {"in_channels": 1, "out_channels": 1, "layers_per_block": 1},
    "KL 13 channels": {"in_channels": 13, "out_channels": 13, "layers_per_block": 3},
    "KL from 4 to 3 channels": {"in_channels": 4},
    "KL narrow": {"block_out_channels": (8, 16), "norm_num_groups": 8},
    "KL odd": {"block_out_channels": (24, 48), "norm_num_groups": 8},
    "KL without attention": {"mid_block_add_attention": False},
    "KL one level": {"block_out_channels": (32,)},
    "VQ f4": {"class": VQGAN, "latent_channels": 3, "num_vq_embeddings": 37},
    "VQ f16 with level attention": {
        "class": VQGAN,
        "block_out_channels": (32, 32, 64, 64, 128),
        "attention": (False, False, False, False, True),
        "num_vq_embeddings": 64,
    },
    "VQ attention at two levels": {
        "class": VQGAN,
        "attention": (False, True, True),
        "layers_per_block": 1,
    },
    "VQ short codes": {"class": VQGAN, "latent_channels": 8, "vq_embed_dim": 5},
    "VQ grey": {"class": VQGAN, "in_channels": 1, "out_channels": 1, "layers_per_block": 3},
}


def build(**changes):
    """A model in eval mode, whose weights, biases and norms are all random."""
    cls = changes.pop("class", KLVAE)
    widths = changes.setdefault("block_out_channels", (32, 64, 128))
    attention = changes.pop("attention", (False,) * len(widths))
    names = [("Attn" if level else "") for level in attention]
    torch.manual_seed(0)
    model = cls(
        down_block_types=tuple(f"{name}DownEncoderBlock2D" for name in names),
        up_block_types=tuple(f"{name}UpDecoderBlock2D" for name in reversed(names)),
        **{"layers_per_block": 2, **changes},
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def images_for(model, height=32, width=48):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, model.config.in_channels, height, width, generator=generator) * 2 - 1
