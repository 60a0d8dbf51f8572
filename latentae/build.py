"""Builds objects from a config: one function per family."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentae import distributed
from latentae.config import (
    DataConfig,
    DecoderConfig,
    Flux2VAEConfig,
    FrozenFeaturesConfig,
    KLVAEConfig,
    LikelihoodConfig,
    LossConfig,
    LPIPSLogitsConfig,
    ModelConfig,
    PerceptualConfig,
    QuantizerConfig,
    ReconstructionConfig,
    RunConfig,
    TinyAutoencoderConfig,
    VQVAEConfig,
)
from latentae.data import (
    CachedSource,
    CenterCrop,
    ColorJitter,
    HeldOut,
    ImageDataset,
    ImageStream,
    RandomCrop,
    Sources,
    StreamSources,
    open_sources,
    open_streams,
    take_evenly,
)
from latentae.discriminators import FrozenFeatures, PatchGAN, WaveletDiscriminator
from latentae.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialTerms
from latentae.losses.classifier import LogitDistance, LPIPSWithLogits
from latentae.losses.feature_maps import (
    ConvolutionalLayers,
    FeatureMaps,
    TransformerLayers,
    VGG16Maps,
    ViTMaps,
)
from latentae.losses.kl import (
    DIVERGENCES,
    KL_SCHEDULES,
    FreeBits,
    KLRegulariser,
    KLSchedule,
    constant,
)
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import (
    LIKELIHOODS,
    RECONSTRUCTION_LOSSES,
    ReconstructionLoss,
    ReconstructionObjective,
)
from latentae.models import (
    KLVAE,
    VQGAN,
    VQVAE,
    Autoencoder,
    Flux2VAE,
    ForeignAutoencoder,
    TinyAutoencoder,
    load_autoencoder,
)
from latentae.models.adapting import describe_architecture
from latentae.models.loading import is_single_file
from latentae.models.tiny_layers import TinyLevels, arguments_of
from latentae.weights import WeightsNotFoundError, load_classifier, load_trunk, load_vision_transformer

_VQ_MODELS: dict[str, type[VQVAE]] = {"VQVAE": VQVAE, "VQGAN": VQGAN}
_DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patchgan": PatchGAN,
    "wavelet": WaveletDiscriminator,
    "frozen_features": FrozenFeatures,
}


def build_autoencoder(
    config: ModelConfig, sample_size: int, decoder: DecoderConfig | None = None
) -> Autoencoder:
    """Builds the model with fresh weights.

    Args:
        sample_size: of the images that its encoder sees, written into its config for information.
        decoder: of a model whose decoder is not the encoder's mirror.
    """
    if isinstance(config, TinyAutoencoderConfig):
        return TinyAutoencoder(**_tiny_arguments(config, decoder))
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
        return KLVAE(**backbone, **quant_convs, **_decoder_arguments(decoder))
    if isinstance(config, Flux2VAEConfig):
        quant_convs = dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), config.use_quant_conv)
        arguments = _decoder_arguments(decoder)
        if arguments.get("decoder_block_out_channels") is None:
            arguments["decoder_block_out_channels"] = config.decoder_block_out_channels
        return Flux2VAE(**backbone, **quant_convs, **arguments)
    if isinstance(config, VQVAEConfig):
        backbone["backbone"] = config.backbone
    return _VQ_MODELS[config.class_](**backbone, **_quantizer_arguments(config.quantizer))


def _decoder_arguments(config: DecoderConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    return {
        "decoder_block_out_channels": config.widths,
        "decoder_layers_per_block": config.layers_per_block,
        "upscale": config.upscale,
    }


def _tiny_arguments(config: TinyAutoencoderConfig, decoder: DecoderConfig | None) -> dict[str, Any]:
    folds = 2 if config.pixel_shuffle else 1
    levels = TinyLevels(config.block_out_channels, config.layers_per_block, config.pooled_blocks, folds)
    upwards, upscale = levels, 1
    if decoder is not None:
        widths, blocks = decoder.widths or levels.widths, decoder.layers_per_block or levels.layers_per_block
        upscale = decoder.upscale
        upwards = TinyLevels(widths, blocks, levels.pooled, folds * upscale)
    return arguments_of(
        levels.encoder(config.in_channels, config.latent_channels),
        upwards.decoder(config.latent_channels, config.out_channels or config.in_channels),
        upscale,
    )


def _quantizer_arguments(config: QuantizerConfig) -> dict[str, Any]:
    """Returns the arguments of a VQ model that describe its quantizer. A table's sizes are separate ones."""
    quantizer = config.model_dump(mode="json")
    member = quantizer.get("member", quantizer)
    num_codes, code_dim = member.pop("num_codes", None), member.pop("code_dim", None)
    if code_dim is not None:
        code_dim *= quantizer.get("groups", 1)
    sizes = {} if num_codes is None else {"num_vq_embeddings": num_codes, "vq_embed_dim": code_dim}
    return {**sizes, "quantizer": quantizer}


def open_pretrained(place: str, norm_num_groups: int | None = None) -> Autoencoder:
    """Opens the model that ``model.pretrained`` names: float32, in eval mode, on the CPU.

    Args:
        place: anything that ``load_autoencoder`` opens.
        norm_num_groups: from the run's config, if given: a single file without a config does not show it.

    Raises:
        ValueError: there is no model, or it cannot be trained.
    """
    told: dict[str, Any] = {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}
    model = load_autoencoder(place, **(told if is_single_file(place) else {}))
    describe_architecture(model)  # raises if the model cannot be trained
    assert isinstance(model, Autoencoder)  # others are not described
    return model


def open_teacher(place: str, norm_num_groups: int | None = None) -> nn.Module:
    """Opens the model that a run learns from: float32, in eval mode, on the CPU.

    Args:
        place, norm_num_groups: as in ``open_pretrained``. A teacher need not be trainable itself.

    Raises:
        ValueError: there is no model, or it is for evaluation only.
    """
    told: dict[str, Any] = {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}
    model = load_autoencoder(place, **(told if is_single_file(place) else {}))
    if isinstance(model, ForeignAutoencoder):
        raise ValueError(
            f"it is an {type(model).__name__}, another architecture, which is for evaluation only; name a "
            "KL-VAE or a VQ model"
        )
    return model


def build_regulariser(config: LossConfig) -> KLRegulariser | None:
    """Builds the KL term, or None if the loss has none."""
    kl = config.kl
    if kl is None:
        return None
    schedule: KLSchedule = constant
    if kl.schedule is not None:
        schedule = KL_SCHEDULES[kl.schedule.type](**kl.schedule.model_dump(exclude={"type"}))
    return KLRegulariser(
        kl.weight,
        schedule=schedule,
        divergence=DIVERGENCES[kl.divergence],
        free_bits=None if kl.free_bits is None else FreeBits(**kl.free_bits.model_dump()),
    )


def build_feature_maps(config: RunConfig, *, bfloat16: bool = False) -> FeatureMaps | None:
    """Builds the frozen network that latents are aligned with, or None. Downloads missing weights.

    Args:
        bfloat16: whether the run computes in bfloat16. The network then does too, unless the config says
            otherwise.

    Raises:
        WeightsNotFoundError: the weights cannot be loaded.
        ValueError: the network is no vision transformer.
    """
    alignment = config.loss.alignment
    if alignment is None:
        return None
    precision = alignment.precision or ("bfloat16" if bfloat16 else "float32")
    if alignment.network == "vgg16":
        return VGG16Maps(load_trunk("vgg"), config.model.downsampling_factor, precision)
    return ViTMaps(load_vision_transformer(alignment.network), precision)


def build_objective(config: LossConfig, *, bfloat16: bool = False) -> ReconstructionObjective:
    """Builds the reconstruction and perceptual loss. Downloads the trunk's weights if they are missing.

    Args:
        bfloat16: whether the run computes in bfloat16. LPIPS then does too, unless the config says otherwise.
    """
    perceptual, reconstruction = config.perceptual, config.reconstruction
    precision = "bfloat16" if bfloat16 else "float32"
    return ReconstructionObjective(
        build_reconstruction_loss(reconstruction),
        reconstruction_weight=reconstruction.weight,
        perceptual=None
        if perceptual is None
        else build_perceptual(perceptual, perceptual.precision or precision),
        perceptual_weight=0.0 if perceptual is None else perceptual.weight,
        scale_perceptual=isinstance(reconstruction, LikelihoodConfig) and reconstruction.scale_perceptual,
    )


def build_reconstruction_loss(config: ReconstructionConfig) -> ReconstructionLoss:
    """Builds the loss of pixels, or their likelihood."""
    if isinstance(config, LikelihoodConfig):
        training = {"type", "weight", "learning_rate_scale", "scale_perceptual"}
        return LIKELIHOODS[config.type](**config.model_dump(exclude=training))
    return partial(RECONSTRUCTION_LOSSES[config.type], **config.model_dump(exclude={"type", "weight"}))


def build_lpips(trunk: str, precision: str = "float32") -> LPIPS:
    """Builds LPIPS on the trunk ``alex`` or ``vgg`` with its ImageNet weights."""
    return LPIPS(load_trunk(trunk), net=trunk, precision=precision)


def build_perceptual(config: PerceptualConfig, precision: str) -> LPIPS:
    """Builds LPIPS, with the distance between a classifier's logits if the config asks for it.

    Raises:
        WeightsNotFoundError: the weights of a network cannot be loaded, or are not the classifier's.
    """
    if not isinstance(config, LPIPSLogitsConfig):
        return build_lpips(config.trunk, precision)
    classifier = _build_classifier(config.classifier, config.classifier_weights)
    return LPIPSWithLogits(
        load_trunk(config.trunk),
        net=config.trunk,
        logits=LogitDistance(classifier, precision),
        logits_weight=config.logits_weight,
        precision=precision,
    )


def _build_classifier(name: str, file: str | None) -> nn.Module:
    import torchvision.models  # takes a second to import, and few runs need it

    state = load_classifier(name, file)
    with torch.device("meta"):
        classifier: nn.Module = getattr(torchvision.models, name)(weights=None)
    try:
        classifier.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsNotFoundError(
            f"`loss.perceptual.classifier_weights` is {file}, which does not hold torchvision's {name}: give "
            "a file with all its tensors, named as there, or null for torchvision's own"
        ) from error
    return classifier.float()  # a file may hold them in half precision


def build_discriminator(config: RunConfig) -> nn.Module | None:
    """Builds the discriminator, or None if the loss has no adversarial term. Downloads missing weights.

    Raises:
        WeightsNotFoundError: the weights of its frozen network cannot be loaded.
        ValueError: this network is no vision transformer.
    """
    if config.discriminator is None or config.loss.adversarial is None:
        return None
    training = {"type", "optimizer", "update_every", "augment", "r1"}
    arguments = config.discriminator.model_dump(exclude=training)
    if isinstance(config.discriminator, FrozenFeaturesConfig):
        arguments["trunk"] = _build_feature_layers(arguments.pop("network"))
    channels = 3 if config.data.alpha else config.model.in_channels  # it sees composites of RGBA images
    return _DISCRIMINATORS[config.discriminator.type](channels, **arguments)


def _build_feature_layers(network: str) -> nn.Module:
    if network in ("alex", "vgg16"):
        trunk = network.removesuffix("16")
        return ConvolutionalLayers(load_trunk(trunk), trunk)
    return TransformerLayers(load_vision_transformer(network))


def build_adversarial_terms(config: RunConfig) -> AdversarialTerms:
    """Builds the adversarial loss and its schedule; with the defaults if the config has none."""
    adversarial, discriminator = config.loss.adversarial, config.discriminator
    if adversarial is None or discriminator is None:
        return AdversarialTerms()
    return AdversarialTerms(
        ADVERSARIAL_LOSSES[adversarial.type],
        **adversarial.model_dump(exclude={"type", "lecam"}),
        update_every=discriminator.update_every,
    )


def build_sources(
    config: DataConfig, notes: Path | None = None, before: HeldOut | None = None
) -> Sources | StreamSources:
    """Opens the training and the validation images.

    Args:
        notes: a folder where streams note how many images their shards hold, so that a resume can skip them.
        before: the images that a continued run has held out; None: a fresh run.
    """
    where: dict[str, Any] = {
        "split": config.split,
        "dataset_config": config.dataset_config,
        "image_column": config.image_column,
        "holdout": config.holdout,
        "value_range": config.value_range,
        "max_pixels": config.max_pixels,
        "before": before,
    }
    cache_bytes = (config.cache_megabytes << 20) // distributed.local_world_size()
    if config.streaming:
        stream = open_streams(config.name, **where, max_validation=config.max_validation, notes=notes)
        return replace(stream, validation=CachedSource(stream.validation, cache_bytes))
    sources = open_sources(config.name, **where)
    validation = take_evenly(sources.validation, config.max_validation)
    measured_bytes = cache_bytes // 4  # there are far fewer images, and they are drawn seldom
    return replace(
        sources,
        train=CachedSource(sources.train, cache_bytes - measured_bytes),
        validation=CachedSource(validation, measured_bytes),
    )


def build_datasets(
    sources: Sources | StreamSources, config: DataConfig, channels: int, seed: int
) -> tuple[ImageDataset | ImageStream, ImageDataset]:
    """Builds random crops of the training images and centre crops of the validation images."""
    jitter = None if config.color_jitter is None else ColorJitter(**config.color_jitter.model_dump())
    crop = partial(
        RandomCrop,
        downscale=config.downscale,
        flip=config.random_flip,
        color_jitter=jitter,
        alpha=config.alpha,
    )
    options: dict[str, Any] = {
        "channels": channels,
        "seed": seed,
        "resolutions": [crop(size) for size in config.resolutions or ()],
    }
    train: ImageDataset | ImageStream
    if isinstance(sources, StreamSources):
        train = ImageStream(
            sources.train,
            crop(config.image_size),
            **options,
            shuffle_block=config.shuffle_block,
            held_out=sources.held_out,
        )
    else:
        train = ImageDataset(sources.train, crop(config.image_size), **options)
    centre = CenterCrop(config.image_size, downscale=None, alpha=config.alpha)
    return train, ImageDataset(sources.validation, centre, channels=channels, seed=seed)
