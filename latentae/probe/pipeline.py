"""A trained denoiser and its autoencoder as a stock ``DiTPipeline``, which diffusers loads alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from torch import Tensor

from latentae.export.prepare import FLUX2, MEASURE, fold_to, read_normalisation, write_out_codebook
from latentae.models import KLVAE, VQVAE, Autoencoder, Flux2VAE
from latentae.models.folding import codes_can_move
from latentae.probe.denoiser import NULL_LABEL, NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class PipelineAutoencoder:
    """A model for ``DiTPipeline``, which divides latents by ``scaling_factor`` and adds no mean.

    Attributes:
        vae: the model with its normalisation folded into its weights, as the stock class where that can hold
            it.
        offset: [c] to add to the latents of ``to_latents``, so that ``vae`` decodes them correctly; zero
            unless a mean cannot be folded.
        remarks: caveats for the reader.
    """

    vae: Any
    offset: Tensor
    remarks: list[str] = field(default_factory=list)


def pipeline_autoencoder(model: Any) -> PipelineAutoencoder:
    """Copies a model for a ``DiTPipeline``; the model itself does not change.

    Raises:
        ValueError: a model of another kind, or that upscales, or whose latent scale is unknown or differs by
            channel.
    """
    if not isinstance(model, Autoencoder):
        raise ValueError(f"this is a {type(model).__name__}, but a probe takes KL-VAEs, VQ models and TAESD")
    if model.upscale > 1:
        raise ValueError(
            f"its images are {model.upscale} times as large as those that it encodes, and a probe compares "
            "images of one size: probe the model that its decoder started from, which has the same latents"
        )
    if isinstance(model, Flux2VAE):
        raise ValueError(f"{FLUX2}, which a DiTPipeline cannot undo: no probe for it")
    normalisation = read_normalisation(model)
    if normalisation is None:
        raise ValueError(
            f"the scale of its latents is not known: {MEASURE}, or name the family that it comes from by "
            "--family"
        )
    vae = copy.deepcopy(model)
    scale = float(model.config.scaling_factor)
    offset = torch.zeros_like(normalisation.shift)
    remarks: list[str] = []
    if isinstance(vae, KLVAE) or (isinstance(vae, VQVAE) and codes_can_move(vae.quantize)):
        remark = fold_to(vae, 0.0, scale)
        remarks += [remark] if remark else []
    else:
        if not bool((normalisation.scale == normalisation.scale[0]).all()):
            raise ValueError(
                "its latents have a scale by channel, and its codes cannot move, so no pipeline can "
                f"undo it: {MEASURE}"
            )
        offset = normalisation.shift * normalisation.scale
    stock, remark = _stock(vae)
    return PipelineAutoencoder(stock, offset.float(), remarks + ([remark] if remark else []))


def build_pipeline(
    denoiser: DiTTransformer2DModel, vae: Any, label_names: Sequence[str] | None = None
) -> DiTPipeline:
    """Builds the pipeline, which ``DiffusionPipeline.from_pretrained`` opens once it is saved.

    The sampler is DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, order 2) at rectified flow's times. Of
    diffusers' flow schedulers ``FlowMatchEulerDiscreteScheduler`` is the simplest, but it lacks
    ``scale_model_input``, which ``DiTPipeline`` calls. With order 1 this scheduler takes the same steps.

    Args:
        label_names: of classes 0, 1, …, for ``pipeline.get_label_ids``.
    """
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
    )
    names = None if label_names is None else dict(enumerate(label_names))
    pipeline = DiTPipeline(transformer=denoiser, vae=vae, scheduler=scheduler, id2label=names)
    if names is not None:
        pipeline.register_to_config(id2label={str(number): name for number, name in names.items()})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_labels(count: int) -> None:
    """Raises ValueError for more classes than a ``DiTPipeline`` can tell apart."""
    if count > NULL_LABEL:
        raise ValueError(
            f"the data have {count} classes, but a DiTPipeline takes {NULL_LABEL}: use --unconditional"
        )


def _stock(vae: Autoencoder) -> tuple[Any, str | None]:
    if not vae.fits_stock_class:
        return vae, "its pipeline loads after `import latentae` only, since no stock class holds it"
    if isinstance(vae, VQVAE):
        write_out_codebook(vae)
    return vae.to_diffusers(), None
