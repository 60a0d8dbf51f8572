"""Pictures from a pipeline, and from noise that is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import DiTPipeline
from torch import Tensor

from latentae.evaluation.metrics import to_uint8
from latentae.probe.randomness import generator


def sample_images(
    pipeline: DiTPipeline,
    labels: Sequence[int],
    *,
    seed: int,
    steps: int,
    guidance_scale: float = 1.0,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Pictures [B, C, H, W] uint8 on the CPU from a call of the pipeline, batch after batch.

    Picture i is a function of (seed, i, its label), whatever the batch size, but for rounding.

    Args:
        labels: one a picture.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 is none.
        batch_size: pictures at a time.
    """
    for start in range(0, len(labels), batch_size):
        chosen = list(labels[start : start + batch_size])
        images = pipeline(
            class_labels=chosen,
            generator=[generator(seed, "picture", start + place) for place in range(len(chosen))],
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            output_type="pt",
        ).images
        yield to_uint8(images.float() * 2 - 1).cpu()


def picture_noise(pipeline: DiTPipeline, seed: int, picture: int) -> Tensor:
    """[c, h, w] the noise that ``sample_images`` begins picture i with."""
    config = pipeline.transformer.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    return torch.randn(shape, generator=generator(seed, "picture", picture))[0]


@torch.no_grad()
def images_of_noise(pipeline: DiTPipeline, noise: Tensor, labels: Sequence[int], steps: int) -> Tensor:
    """Pictures [B, C, H, W] uint8 on the CPU of noise [B, c, h, w]: what the pipeline does without guidance.

    A ``DiTPipeline`` draws its own noise, so that one cannot ask it for what lies between two pictures.
    """
    denoiser, scheduler = pipeline.transformer, pipeline.scheduler
    device = pipeline.device
    latents, class_labels = noise.to(device), torch.tensor(labels, device=device)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        times = time.expand(len(latents)).to(device)
        predicted = denoiser(latents, timestep=times, class_labels=class_labels).sample
        latents = scheduler.step(predicted, time, latents).prev_sample
    return decode_latents(pipeline, latents)


@torch.no_grad()
def decode_latents(pipeline: DiTPipeline, latents: Tensor) -> Tensor:
    """Pictures [B, C, H, W] uint8 on the CPU of a denoiser's latents, decoded as the pipeline does."""
    vae = pipeline.vae
    images = vae.decode(latents.to(pipeline.device) / vae.config.scaling_factor).sample
    return to_uint8(images.float().clamp(-1, 1)).cpu()
