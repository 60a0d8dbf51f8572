"""Every pipeline that is tried: how it is built around an autoencoder, and how it is called."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    AmusedPipeline,
    AmusedScheduler,
    ChromaImg2ImgPipeline,
    ChromaPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22Pipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    Lumina2Pipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    VQDiffusionPipeline,
    VQDiffusionScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
)
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
    LearnedClassifierFreeSamplingEmbeddings,
)

from tests.pipelines import denoisers, text
from tests.pipelines.autoencoders import NUM_CODES, WIDTH

SIZE = 32
PROMPT = {"prompt": "a cat", "guidance_scale": 1.0}
FROM_IMAGE = {**PROMPT, "strength": 0.5}
FROM_TEXT = {**PROMPT, "height": SIZE, "width": SIZE}
EMBEDS = {
    "image_embeds": torch.zeros(1, WIDTH),
    "negative_image_embeds": torch.zeros(1, WIDTH),
    "guidance_scale": 1.0,
    "height": SIZE,
    "width": SIZE,
}


@dataclass(frozen=True)
class Case:
    """A pipeline and a task.

    Attributes:
        build: the pipeline around an autoencoder.
        arguments: of its call, besides ``output_type``, ``generator``, ``num_inference_steps`` and the image.
        image, mask: whether it takes them.
        part: the name under which the pipeline holds the autoencoder.
        denoiser: the name under which it holds the denoiser.
        scaled: whether it multiplies latents by ``scaling_factor``.
        shifted: whether it also subtracts ``shift_factor``.
        in_pieces: whether slicing and tiling are turned on.
        of_codes: whether it asks for a VQ model: for ``quantize``, or for decoding without it.
        config: what the autoencoder's config must say.
    """

    build: Callable[[Any], DiffusionPipeline]
    arguments: dict[str, Any]
    image: bool = False
    mask: bool = False
    part: str = "vae"
    denoiser: str = "unet"
    scaled: bool = True
    shifted: bool = False
    in_pieces: bool = False
    of_codes: bool = False
    config: dict[str, Any] = field(default_factory=dict)


NEARLY_NOISELESS = {"beta_start": 1e-6, "beta_end": 2e-4, "clip_sample": False}  # in the first steps


def ddim() -> DDIMScheduler:
    """As Stable Diffusion's pipelines want it."""
    return DDIMScheduler(set_alpha_to_one=False, steps_offset=1, **NEARLY_NOISELESS)


def _sd(cls: type[DiffusionPipeline], in_channels: int = 4) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        unet=denoisers.unet(in_channels=in_channels),
        text_encoder=text.clip_text_encoder(projection=False),
        tokenizer=text.clip_tokenizer(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        unet=denoisers.sdxl_unet(),
        text_encoder=text.clip_text_encoder(projection=False),
        text_encoder_2=text.clip_text_encoder(projection=True),
        tokenizer=text.clip_tokenizer(),
        tokenizer_2=text.clip_tokenizer(),
        scheduler=ddim(),
    )


def _sd3(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        transformer=denoisers.sd3_transformer(),
        text_encoder=text.clip_text_encoder(projection=True),
        text_encoder_2=text.clip_text_encoder(projection=True),
        text_encoder_3=text.t5_encoder(),
        tokenizer=text.clip_tokenizer(),
        tokenizer_2=text.clip_tokenizer(),
        tokenizer_3=text.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _flux(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        transformer=denoisers.flux_transformer(),
        text_encoder=text.clip_text_encoder(projection=False),
        text_encoder_2=text.t5_encoder(),
        tokenizer=text.clip_tokenizer(),
        tokenizer_2=text.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _chroma(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        transformer=denoisers.chroma_transformer(),
        text_encoder=text.t5_encoder(),
        tokenizer=text.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _z_image(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vae: cls(
        vae=vae,
        transformer=denoisers.z_image_transformer(),
        text_encoder=text.qwen(),
        tokenizer=text.chat_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _lumina2(vae: Any) -> DiffusionPipeline:
    return Lumina2Pipeline(
        vae=vae,
        transformer=denoisers.lumina2_transformer(),
        text_encoder=text.gemma(),
        tokenizer=text.chat_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _kandinsky(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda movq: cls(
        unet=denoisers.kandinsky_unet(), scheduler=DDPMScheduler(**NEARLY_NOISELESS), movq=movq
    )


def _amused(cls: type[DiffusionPipeline]) -> Callable[[Any], DiffusionPipeline]:
    return lambda vqvae: cls(
        vqvae=vqvae,
        tokenizer=text.clip_tokenizer(),
        text_encoder=text.clip_text_encoder(projection=True),
        transformer=denoisers.amused_transformer(),
        scheduler=AmusedScheduler(mask_token_id=NUM_CODES),
    )


def _dit(vae: Any) -> DiffusionPipeline:
    return DiTPipeline(transformer=denoisers.dit_transformer(), vae=vae, scheduler=ddim())


def _ldm(vqvae: Any) -> DiffusionPipeline:
    return LDMPipeline(vqvae=vqvae, unet=denoisers.unconditional_unet(4, 4), scheduler=ddim())


def _ldm_text(vqvae: Any) -> DiffusionPipeline:
    return LDMTextToImagePipeline(
        vqvae=vqvae,
        bert=text.ldm_bert(),
        tokenizer=text.bert_tokenizer(),
        unet=denoisers.unet(),
        scheduler=ddim(),
    )


def _upscaler(vqvae: Any) -> DiffusionPipeline:
    return LDMSuperResolutionPipeline(vqvae=vqvae, unet=denoisers.unconditional_unet(6, 3), scheduler=ddim())


def _vq_diffusion(vqvae: Any) -> DiffusionPipeline:
    return VQDiffusionPipeline(
        vqvae=vqvae,
        text_encoder=text.clip_text_encoder(projection=False),
        tokenizer=text.clip_tokenizer(),
        transformer=denoisers.vq_diffusion_transformer(),
        scheduler=VQDiffusionScheduler(num_vec_classes=NUM_CODES + 1),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(learnable=False),
    )


_LENGTH = {"max_sequence_length": 16}
_UNGUIDED = {"guidance_scale": 0.0}  # with 1.0 Z-Image asks its denoiser twice, with and without the text
_LATEST: dict[str, Any] = {"denoiser": "transformer", "shifted": True}
_CODES = {"of_codes": True, "scaled": False, "part": "vqvae", "denoiser": "transformer"}

CASES: dict[str, Case] = {
    "StableDiffusion, text-to-image": Case(_sd(StableDiffusionPipeline), FROM_TEXT),
    "StableDiffusion, text-to-image, sliced and tiled": Case(
        _sd(StableDiffusionPipeline), FROM_TEXT, in_pieces=True
    ),
    "StableDiffusion, image-to-image": Case(_sd(StableDiffusionImg2ImgPipeline), FROM_IMAGE, image=True),
    "StableDiffusion, inpaint": Case(_sd(StableDiffusionInpaintPipeline), FROM_TEXT, image=True, mask=True),
    "StableDiffusion, inpaint (9-channel UNet)": Case(
        _sd(StableDiffusionInpaintPipeline, in_channels=9), FROM_TEXT, image=True, mask=True
    ),
    "SDXL, text-to-image": Case(_sdxl(StableDiffusionXLPipeline), FROM_TEXT),
    "SDXL, image-to-image": Case(_sdxl(StableDiffusionXLImg2ImgPipeline), FROM_IMAGE, image=True),
    "SDXL, inpaint": Case(_sdxl(StableDiffusionXLInpaintPipeline), FROM_TEXT, image=True, mask=True),
    "SD3, text-to-image": Case(_sd3(StableDiffusion3Pipeline), FROM_TEXT | _LENGTH, **_LATEST),
    "SD3, image-to-image": Case(
        _sd3(StableDiffusion3Img2ImgPipeline),
        FROM_TEXT | FROM_IMAGE | _LENGTH,
        image=True,
        **_LATEST,
    ),
    "Flux, text-to-image": Case(_flux(FluxPipeline), FROM_TEXT | _LENGTH, **_LATEST),
    "Flux, image-to-image": Case(
        _flux(FluxImg2ImgPipeline),
        FROM_TEXT | FROM_IMAGE | _LENGTH,
        image=True,
        **_LATEST,
    ),
    "Chroma, text-to-image": Case(_chroma(ChromaPipeline), FROM_TEXT | _LENGTH, **_LATEST),
    "Chroma, image-to-image": Case(
        _chroma(ChromaImg2ImgPipeline), FROM_TEXT | FROM_IMAGE | _LENGTH, image=True, **_LATEST
    ),
    "Z-Image, text-to-image": Case(_z_image(ZImagePipeline), FROM_TEXT | _LENGTH | _UNGUIDED, **_LATEST),
    "Z-Image, image-to-image": Case(
        _z_image(ZImageImg2ImgPipeline), FROM_TEXT | FROM_IMAGE | _LENGTH | _UNGUIDED, image=True, **_LATEST
    ),
    # it takes the autoencoder's factor for 8, whatever it is
    "Lumina2": Case(_lumina2, {**PROMPT, "height": 128, "width": 128} | _LENGTH, **_LATEST),
    "DiT": Case(_dit, {"class_labels": [1], "guidance_scale": 1.0}, denoiser="transformer"),
    "LDM, unconditional": Case(_ldm, {}, part="vqvae"),
    "LDM, text-to-image": Case(_ldm_text, {**PROMPT, "height": 128, "width": 128}, part="vqvae"),
    "LDM, super-resolution": Case(
        _upscaler, {}, image=True, part="vqvae", scaled=False, config={"latent_channels": 3}
    ),
    "Kandinsky 2.2, from an embedding": Case(
        _kandinsky(KandinskyV22Pipeline), EMBEDS, part="movq", of_codes=True, scaled=False
    ),
    "Kandinsky 2.2, image-to-image": Case(
        _kandinsky(KandinskyV22Img2ImgPipeline),
        EMBEDS | {"strength": 0.5},
        image=True,
        part="movq",
        of_codes=True,
        scaled=False,
    ),
    "aMUSEd, text-to-image": Case(
        _amused(AmusedPipeline), FROM_TEXT, config={"lookup_from_codebook": True}, **_CODES
    ),
    "aMUSEd, image-to-image": Case(
        _amused(AmusedImg2ImgPipeline),
        FROM_IMAGE,
        image=True,
        config={"lookup_from_codebook": True},
        **_CODES,
    ),
    "VQ-Diffusion": Case(_vq_diffusion, PROMPT, **_CODES),
}
