"""From a config to objects: one plain function a family."""

from __future__ import annotations

from typing import Any

from torch import nn

from latentae.config import DataConfig, KLVAEConfig, LossConfig, ModelConfig, RunConfig, VQVAEConfig
from latentae.data import CachedSource, CenterCrop, ImageDataset, RandomCrop, Sources, open_sources
from latentae.discriminators import PatchGAN
from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.kl import KLRegulariser
from latentae.losses.objective import ReconstructionObjective
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import RECONSTRUCTION_LOSSES
from latentae.models import KLVAE, VQGAN, VQVAE
from latentae.weights import load_trunk

_VQ_MODELS: dict[str, type[VQVAE]] = {"VQVAE": VQVAE, "VQGAN": VQGAN}
_DISCRIMINATORS: dict[str, type[nn.Module]] = {"patchgan": PatchGAN}


def build_autoencoder(config: ModelConfig, sample_size: int) -> KLVAE | VQVAE:
    """The model with fresh weights; ``sample_size`` is written into its config for information."""
    attention = config.attention_levels or (False,) * len(config.block_out_channels)
    backbone: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels or config.in_channels,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)
        ),
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "sample_size": sample_size,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_attention,
    }
    if isinstance(config, KLVAEConfig):
        quant_convs = dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), config.use_quant_conv)
        return KLVAE(**backbone, **quant_convs)
    if isinstance(config, VQVAEConfig):
        backbone["backbone"] = config.backbone
    quantizer = config.quantizer.model_dump()
    num_codes, code_dim = quantizer.pop("num_codes"), quantizer.pop("code_dim")
    return _VQ_MODELS[config.class_](
        **backbone, num_vq_embeddings=num_codes, vq_embed_dim=code_dim, quantizer=quantizer
    )


def build_regulariser(config: LossConfig) -> KLRegulariser | None:
    """The KL term, or None where there is none."""
    return None if config.kl is None else KLRegulariser(config.kl.weight)


def build_objective(config: LossConfig) -> ReconstructionObjective:
    """Reconstruction and perceptual loss; fetches the trunk's weights if they are not on this machine yet."""
    perceptual = config.perceptual
    return ReconstructionObjective(
        RECONSTRUCTION_LOSSES[config.reconstruction.type],
        reconstruction_weight=config.reconstruction.weight,
        perceptual=None if perceptual is None else build_lpips(perceptual.trunk),
        perceptual_weight=0.0 if perceptual is None else perceptual.weight,
    )


def build_lpips(trunk: str) -> LPIPS:
    """LPIPS on the trunk ``alex`` or ``vgg`` with its ImageNet weights."""
    return LPIPS(load_trunk(trunk), net=trunk)


def build_discriminator(config: RunConfig) -> nn.Module | None:
    """The discriminator, or None where the loss has no adversarial term."""
    if config.discriminator is None or config.loss.adversarial is None:
        return None
    arguments = config.discriminator.model_dump(exclude={"type", "optimizer"})
    return _DISCRIMINATORS[config.discriminator.type](config.model.in_channels, **arguments)


def build_adversarial_terms(config: LossConfig) -> AdversarialTerms:
    """How the adversarial loss enters; the defaults where there is none."""
    if config.adversarial is None:
        return AdversarialTerms()
    return AdversarialTerms(**config.adversarial.model_dump(exclude={"type"}))


def build_sources(config: DataConfig) -> Sources:
    """The training and the validation images."""
    sources = open_sources(
        config.name,
        split=config.split,
        dataset_config=config.dataset_config,
        image_column=config.image_column,
        holdout=config.holdout,
    )
    megabyte = 1 << 20
    return Sources(
        train=CachedSource(sources.train, config.cache_megabytes * megabyte),
        validation=CachedSource(sources.validation, config.cache_megabytes * megabyte),
    )


def build_datasets(
    sources: Sources, config: DataConfig, channels: int, seed: int
) -> tuple[ImageDataset, ImageDataset]:
    """Random crops of the training images and centre crops of the validation images."""
    train = RandomCrop(config.image_size, downscale=config.downscale, flip=config.random_flip)
    validation = CenterCrop(config.image_size, downscale=None)
    return (
        ImageDataset(sources.train, train, channels=channels, seed=seed),
        ImageDataset(sources.validation, validation, channels=channels, seed=seed),
    )
