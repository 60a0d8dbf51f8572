"""Tiny models of diffusers' autoencoders with random weights, for tests and in the place of public models."""

import diffusers
import torch

THREE_D = {"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1}
WAN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False],
    "latents_mean": [0.1, 0.2, 0.3, 0.4],
    "latents_std": [1.0, 2.0, 3.0, 4.0],
}
FOREIGN = {
    "AsymmetricAutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "down_block_out_channels": (8, 16),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "up_block_out_channels": (8, 16),
        "norm_num_groups": 4,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "scaling_factor": 0.41407,
    },
    "AutoencoderKLCogVideoX": {**THREE_D, "norm_num_groups": 2},
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8,) * 4,
        "decode_block_out_channels": (8,) * 4,
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
        "latents_mean": [float(n) for n in range(8)],  # of two latent frames
        "latents_std": [float(n + 1) for n in range(8)],
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (32, 32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 16,
        "scaling_factor": 0.75,
    },
    "AutoencoderKLHunyuanImageRefiner": {**THREE_D, "block_out_channels": (8,) * 5},
    "AutoencoderKLHunyuanVideo": {**THREE_D, "norm_num_groups": 4},
    "AutoencoderKLHunyuanVideo15": {**THREE_D, "block_out_channels": (8,) * 5},
    "AutoencoderKLKVAE": {
        "channels": 32,
        "num_enc_blocks": 1,
        "num_dec_blocks": 1,
        "z_channels": 4,
        "ch_mult": (1, 2),
    },
    "AutoencoderKLKVAEVideo": {
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "z_channels": 4,
        "temporal_compress_times": 2,
    },
    "AutoencoderKLLTX2Video": {
        "latent_channels": 8,
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (16, 32, 64),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "decoder_inject_noise": (True,) * 5,
        "timestep_conditioning": True,
    },
    "AutoencoderKLMagvit": {**THREE_D, "norm_num_groups": 2},
    "AutoencoderKLMochi": {
        "latent_channels": 4,
        "encoder_block_out_channels": (32,) * 4,
        "decoder_block_out_channels": (32,) * 4,
        "layers_per_block": (1,) * 5,
        "latents_mean": (0.1, 0.2, 0.3, 0.4),
        "latents_std": (2.0,) * 4,
        "scaling_factor": 0.5,
    },
    "AutoencoderKLQwenImage": WAN,
    "AutoencoderKLQwenImage21": {
        **WAN,
        "decoder_base_dim": 8,
        "dim_mult": [1, 1],
        "scale_factor_spatial": 2,
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
    },
    "AutoencoderKLWan": {
        **WAN,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 4,
    },
    "AutoencoderRAE": {
        "encoder_hidden_size": 64,
        "encoder_patch_size": 4,
        "encoder_num_hidden_layers": 1,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "patch_size": 8,
        "encoder_input_size": 16,
        "scaling_factor": 0.5,
        "latents_mean": torch.linspace(-1, 1, 64 * 16).view(64, 4, 4).tolist(),
        "latents_std": torch.linspace(1, 2, 64 * 16).view(64, 4, 4).tolist(),
    },
    "ConsistencyDecoderVAE": {
        "encoder_block_out_channels": (8, 16),
        "encoder_down_block_types": ("DownEncoderBlock2D",) * 2,
        "encoder_norm_num_groups": 4,
        "encoder_layers_per_block": 1,
        "decoder_block_out_channels": (8, 16),
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "decoder_layers_per_block": 1,
        "decoder_norm_num_groups": 4,
    },
    "Kandinsky6SRVAE": {
        "latent_channels": 4,
        "encoder_block_out_channels": (16, 16, 16),
        "decoder_block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
    },
}
"""Class that ``ForeignAutoencoder`` opens -> arguments of its constructor."""

_TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
OWN = {
    "AutoencoderKL": _TWO_LEVELS,
    "AutoencoderKLFlux2": _TWO_LEVELS,
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "VQModel": {**_TWO_LEVELS, "num_vq_embeddings": 64},
}
"""Class with a counterpart in latentae -> arguments of its constructor."""

# Images of 256 pixels, which the protocol of most published numbers has, instead of 32.
_LARGER = {"AutoencoderRAE": {"encoder_input_size": 128, "latents_mean": None, "latents_std": None}}


def make_stock(name, seed=0, **changes):
    """Returns a model of diffusers' class with random weights, in eval mode."""
    torch.manual_seed(seed)
    return getattr(diffusers, name)(**{**(FOREIGN | OWN)[name], **changes}).eval()


def save_stand_in(name, folder, seed=0):
    """Writes the folder of a model of diffusers' class with random weights, for images of 256 pixels."""
    make_stock(name, seed, **_LARGER.get(name, {})).save_pretrained(folder)
