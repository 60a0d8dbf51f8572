"""A whole training run: the top of the schema, with the optimizers, the discriminator and the guard.

A new optimizer is a section here and its name in the union `OptimizerConfig`.
"""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from latentae.config.schema.base import (
    FROM_LIST,
    Betas,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Section,
    Share,
    ShareBelowOne,
    Text,
)
from latentae.config.schema.checks import find_problems
from latentae.config.schema.data import DataConfig
from latentae.config.schema.loss import LossConfig
from latentae.config.schema.model import DecoderConfig, ModelConfig


class _Adam(Section):
    """The keys of Adam and its variants, and of the learning rate schedule."""

    type: str
    learning_rate: Positive
    """Learning rate after the warmup. It is used as given, not multiplied by the batch size."""
    betas: Betas = (0.5, 0.9)
    """Decay of the moving averages of the gradient and of its square (taming-transformers: 0.5, 0.9)."""
    weight_decay: PositiveOrZero = 0.0
    """Each step reduces every weight, norms and biases included, by this share times the learning rate
    (taming-transformers: 0)."""
    epsilon: Positive = 1e-8
    """Added to the denominator of the update."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rate after the warmup. constant: stays the same. cosine: half a cosine that ends at
    `max_steps`. wsd: warmup-stable-decay (arXiv 2404.06395), constant and then 1 - sqrt over the last
    `decay_share`."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    decay_share: Share = 0.2
    """Share of the steps after the warmup over which the wsd schedule decays. The part before it does not
    depend on `max_steps`, so a run can be continued for longer."""
    final_scale: Share = 0.0
    """Share of the learning rate that remains at the end of the cosine and wsd schedules."""


class AdamWConfig(_Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101) and a learning rate schedule."""

    type: Literal["adamw"]


class AdamW8bitConfig(_Adam):
    """AdamW whose two moving averages take one byte each instead of four (arXiv 2110.02861); needs
    bitsandbytes."""

    type: Literal["adamw8bit"]


class MuonConfig(_Adam):
    """Muon (Jordan et al. 2024, arXiv 2502.16982): momentum whose update has singular values of about 1, for
    the weights of convolutions and linear layers; AdamW for the rest. It learns faint directions, such as
    colours, as fast as strong ones. It takes more time per step than AdamW."""

    type: Literal["muon"]
    momentum: ShareBelowOne = 0.95
    """Decay of the moving average of the gradient, for the weights of convolutions and linear layers."""
    update_rms: Positive = 0.2
    """Root mean square of the update of such a weight, as a share of the learning rate. 0.2 is about AdamW's,
    so that AdamW's learning rates can be kept (arXiv 2502.16982)."""


OptimizerConfig: TypeAlias = Annotated[
    AdamWConfig | AdamW8bitConfig | MuonConfig, Field(discriminator="type")
]


class R1Config(Section):
    """A penalty on the gradient of the discriminator's logits at real images (R1, arXiv 1801.04406), applied
    lazily as in StyleGAN2."""

    weight: Positive
    """Weight of |gradient of the sum of an image's logits|^2 / (2 x number of these logits), averaged over
    the images. For a PatchGAN this quantity is about 1, so a weight of 0.1 already has an effect. StyleGAN2
    uses 10 with one logit."""
    every: Count = 16
    """Updates of the discriminator per penalty. Each penalty is multiplied by this number. `max_grad_norm`
    clips these updates too, and the penalty with them; 1 avoids that, but takes more time."""


class _Discriminator(Section):
    """The keys of all discriminators."""

    type: str
    optimizer: OptimizerConfig
    """The discriminator's own optimizer."""
    update_every: Count = 1
    """Optimizer steps per update of the discriminator. More than 1 weakens a discriminator that is too
    strong."""
    augment: Annotated[tuple[Literal["color", "translation", "cutout"], ...], FROM_LIST] = ()
    """Random augmentations, in this order, of the images and reconstructions that the discriminator sees
    (DiffAug, arXiv 2006.10738). Use them with few images, which it would otherwise memorise. []: none."""
    r1: R1Config | None = None
    """R1 gradient penalty; null: none."""


class _Convolutional(_Discriminator):
    """The keys of discriminators that learn all their convolutions."""

    base_channels: Count = 64
    """Channels of the first layer. Each later layer doubles them, up to eight times this number."""
    num_layers: Count = 3
    """Layers that halve height and width. With 3, each logit of a patchgan sees 70x70 pixels."""
    norm: Literal["group", "spectral", "none"] = "group"
    """Normalisation of the inner layers."""


class PatchGANConfig(_Convolutional):
    """A convolutional network with one logit per image patch (arXiv 1611.07004)."""

    type: Literal["patchgan"]


class WaveletConfig(_Convolutional):
    """A convolutional network that takes in the Haar wavelets of the image at each of its scales, with one
    logit per image patch (after SWAGAN, arXiv 2102.06108)."""

    type: Literal["wavelet"]


class FrozenFeaturesConfig(_Discriminator):
    """Small heads on four layers of a frozen pretrained network (Projected GAN, arXiv 2111.01007, with the
    heads of StyleGAN-T, arXiv 2301.09515, as in RAE, arXiv 2510.11690). Needs RGB images."""

    type: Literal["frozen_features"]
    network: Text = "vgg16"
    """The frozen network: vgg16 or alex, which work offline, or a vision transformer as hub id or
    transformers folder (pip install latentae[dinov2]), such as facebook/dinov2-small. RAE uses the first
    DINO's ViT-S."""
    head_channels: Count = 128
    """Channels of the heads, a multiple of 16."""


DiscriminatorConfig: TypeAlias = Annotated[
    PatchGANConfig | WaveletConfig | FrozenFeaturesConfig, Field(discriminator="type")
]
"""The networks that may stand in the section `discriminator`."""


class GuardConfig(Section):
    """Updates from losses or gradients that are not finite are skipped; too many in a row end the run."""

    max_consecutive: Count = 10
    """Number of skipped updates in a row after which the run stops and saves its state."""
    min_codebook_usage: Share | None = 0.5
    """Warn once if the share of the codes that are used stays below this at five log lines in a row, and name
    remedies. Use is counted over an epoch. Below 0.5 a codebook of half the size would do. For a codebook too
    large to be used fully within an epoch, the share is relative to what even use would reach. null: no
    warning."""


class RunConfig(Section):
    """All settings of a training run.

    Built from a file with `load_config` or `read_config`, whose errors are written for people; built by hand
    it raises pydantic's `ValidationError`, a `ValueError`.
    """

    output_dir: Text = "run"
    """Folder the run writes to: config.yaml, metrics.jsonl, samples/, checkpoints/, model/."""
    seed: CountOrZero = 0
    """Seed of all random numbers."""
    max_steps: Count
    """Optimizer steps of the whole run, resumed parts included."""
    batch_size: Count
    """Images per process and forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimizer step."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    """Number format of the forward pass; null: the setting of `accelerate launch`. auto: the same, but if
    that is no, bf16 on devices that compute bfloat16 natively: GPUs since Ampere, CPUs with AVX512-BF16 or
    AMX. A resumed run keeps what auto chose."""
    deterministic: bool = False
    """Use only deterministic kernels: repeated runs are bit-equal on CUDA too, but slower."""
    performance: Literal["auto", "memory", "off"] = "auto"
    """auto: use the optimisations that were measured to save time or memory on this kind of device; results
    differ only by rounding, and the choice is printed at start-up. memory: use the least memory, for about a
    tenth more time, on any device. off: diffusers' own blocks and whole batches."""
    float32_precision: Literal["highest", "high"] | None = None
    """How CUDA computes float32, in the run's own measurements too. high: TensorFloat-32 (10 bits of
    mantissa) in matrix products and convolutions. highest: TensorFloat-32 in neither. null: torch's default,
    TensorFloat-32 in convolutions only. The look-up of codes does not depend on it."""
    channels_last: bool = False
    """Store weights in the channels-last memory format, which the matrix units of GPUs prefer with
    `mixed_precision`. Not measured on a GPU yet; slows down training on a CPU."""
    compile: bool = False
    """Compile the blocks of encoder, decoder, LPIPS and (without `r1`) the discriminator with torch.compile,
    for static shapes. The first steps take minutes. Not measured on a GPU yet."""
    cpu_threads: Count | None = None
    """CPU threads per process; null: the machine's cores, divided among its processes."""
    process_group_timeout_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    """Hours that a process waits for the others before the run fails, at most a year. It is long because the
    first process downloads weights and indexes the data while the others wait. If a process dies, torchrun
    and `accelerate launch` end the run at once in any case."""
    resume: Text = "auto"
    """auto: continue from the newest checkpoint in `output_dir` if there is one. never: start at step 0. Or
    the path of a checkpoint to continue from."""
    checkpoint_every: Count = 1000
    """Optimizer steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep; older ones are deleted."""
    best_metric: Literal["validation_psnr", "validation_ssim", "validation_lpips"] | None = None
    """Also keep the best checkpoint by this metric, among those measured at the step they were saved (see
    `validate_every`). checkpoints/best.json names it. null: keep only the newest."""
    sample_every: Count = 500
    """Optimizer steps between sample images."""
    log_every: Count = 50
    """Optimizer steps between lines of metrics.jsonl."""
    validate_every: Count | None = None
    """Optimizer steps between measurements of the averaged weights on the validation images, logged as
    validation_psnr, validation_ssim and validation_lpips; null: only measure at the end of the run."""
    ema_decay: ShareBelowOne | None = None
    """Decay per step of the exponential moving average of the weights. With it, the averaged weights are
    exported. null: no average."""
    max_grad_norm: Positive | None = None
    """Gradients are clipped to this L2 norm, separately for autoencoder and discriminator; null: no
    clipping."""
    guard: GuardConfig = GuardConfig()
    """What to do about updates that are not finite and about unused codes."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], FROM_LIST] = ("tensorboard",)
    """Where to log metrics besides metrics.jsonl; []: nowhere else."""
    model: ModelConfig
    """The autoencoder."""
    freeze_encoder: bool = False
    """Train only the decoder of `model.pretrained`. The encoder and a VQ model's codebook stay unchanged, so
    that existing latents, their scale and denoisers trained on them stay valid. The KL and VQ losses are left
    out. A KLVAE's decoder learns from samples of the posterior."""
    decoder: DecoderConfig | None = None
    """A smaller decoder than the encoder's mirror, or one of larger images; null: the mirror."""
    loss: LossConfig
    """The losses that train the autoencoder."""
    discriminator: DiscriminatorConfig | None = None
    """Discriminator for the adversarial loss; null if there is no adversarial loss."""
    optimizer: OptimizerConfig
    """The autoencoder's optimizer."""
    data: DataConfig
    """The training images."""

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        problems = find_problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
