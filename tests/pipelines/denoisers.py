"""The denoisers of tiny pipelines: diffusers' own classes, predicting zeros wherever that is possible."""

from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    SD3Transformer2DModel,
    Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UVit2DModel,
    ZImageTransformer2DModel,
)

from tests.pipelines.autoencoders import NUM_CODES, WIDTH

LATENT_SIZE = 16
_BLOCKS = {"block_out_channels": (WIDTH, WIDTH), "layers_per_block": 1, "norm_num_groups": 4}
_ATTENTION_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
}


def silent(denoiser: torch.nn.Module, last: str) -> torch.nn.Module:
    """A denoiser that always predicts zeros: its layer ``last`` is zeroed."""
    with torch.no_grad():
        for parameter in denoiser.get_submodule(last).parameters():
            parameter.zero_()
    return denoiser.eval()


def unet(**config: Any) -> torch.nn.Module:
    """A text-conditional UNet."""
    defaults: dict[str, Any] = {
        "sample_size": LATENT_SIZE,
        "in_channels": 4,
        "out_channels": 4,
        **_BLOCKS,
        **_ATTENTION_BLOCKS,
    }
    return silent(UNet2DConditionModel(**(defaults | config)), "conv_out")


def sdxl_unet(**config: Any) -> torch.nn.Module:
    """SDXL's, which is also told the pooled text and the image's sizes."""
    return unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        cross_attention_dim=2 * WIDTH,  # two text encoders' side by side
        **config,
    )


def kandinsky_unet() -> torch.nn.Module:
    """Kandinsky 2.2's, conditioned on an image's embedding; it predicts a variance, too."""
    return unet(
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )


def unconditional_unet(in_channels: int, out_channels: int) -> torch.nn.Module:
    """LDM's and its upscaler's."""
    model = UNet2DModel(
        sample_size=LATENT_SIZE,
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        **_BLOCKS,
    )
    return silent(model, "conv_out")


def sd3_transformer() -> torch.nn.Module:
    """Stable Diffusion 3's."""
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        caption_projection_dim=8,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )
    return silent(model, "proj_out")


def flux_transformer() -> torch.nn.Module:
    """FLUX's, which sees 2×2 latents as one position."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    return silent(model, "proj_out")


def chroma_transformer() -> torch.nn.Module:
    """Chroma's: FLUX's, with the guidance distilled into a small network."""
    model = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return silent(model, "proj_out")


def lumina2_transformer() -> torch.nn.Module:
    """Lumina-Image 2's."""
    model = Lumina2Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=2 * WIDTH,
    )
    return silent(model, "norm_out.linear_2")


def z_image_transformer() -> torch.nn.Module:
    """Z-Image's, which takes and gives lists of [c, 1, h, w]."""
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=2 * WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
    )
    return silent(model, "all_final_layer.2-1.linear")


def dit_transformer() -> torch.nn.Module:
    """DiT's, which predicts a variance, too."""
    model = DiTTransformer2DModel(
        sample_size=LATENT_SIZE,
        num_layers=1,
        patch_size=4,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    )
    return silent(model, "proj_out_2")


def amused_transformer() -> torch.nn.Module:
    """aMUSEd's, over codes and a mask."""
    return UVit2DModel(
        hidden_size=WIDTH,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=NUM_CODES + 1,
        codebook_size=NUM_CODES,
        in_channels=WIDTH,
        block_out_channels=WIDTH,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=WIDTH,
    ).eval()


def vq_diffusion_transformer() -> torch.nn.Module:
    """VQ-Diffusion's, over codes and a mask."""
    return Transformer2DModel(
        sample_size=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_vector_embeds=NUM_CODES + 1,
        cross_attention_dim=WIDTH,
        attention_bias=True,
        num_embeds_ada_norm=100,
        activation_fn="geglu-approximate",
        norm_type="ada_norm",
    ).eval()
