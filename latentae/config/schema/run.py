"""A whole training run: the top of the schema."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from latentae.config.schema.base import FROM_LIST, Count, CountOrZero, Positive, Section, ShareBelowOne, Text
from latentae.config.schema.checks import find_problems
from latentae.config.schema.data import DataConfig
from latentae.config.schema.discriminator import DiscriminatorConfig
from latentae.config.schema.guard import GuardConfig
from latentae.config.schema.loss import LossConfig
from latentae.config.schema.model import ModelConfig
from latentae.config.schema.optimizer import OptimizerConfig


class RunConfig(Section):
    """Everything a training run is told.

    Built from a file with `load_config` or `read_config`, whose errors are written for people; built by hand
    it raises pydantic's `ValidationError`, a `ValueError`.
    """

    output_dir: Text = "run"
    """Folder the run writes to: config.yaml, metrics.jsonl, samples/, checkpoints/, model/."""
    seed: CountOrZero = 0
    """Start of everything random."""
    max_steps: Count
    """Optimizer steps of the whole run, resumed parts included."""
    batch_size: Count
    """Images per process and forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimizer step."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Number format of the forward pass; null: what `accelerate launch` was told."""
    deterministic: bool = False
    """Use deterministic kernels only: bit-equal repeats on CUDA too, at some cost in speed."""
    performance: Literal["auto", "memory", "off"] = "auto"
    """auto: what was measured to make training faster or to take less memory on this kind of device, at the
    same losses but for rounding; the choice is told at the start. memory: the least memory at about a tenth
    more time, on any device. off: stock blocks and whole batches."""
    float32_precision: Literal["highest", "high"] | None = None
    """On CUDA, what float32 is computed in, the run's own measurements too. high: TensorFloat-32, 10 bits of
    mantissa, in matrix products and convolutions; highest: in neither; null: torch's own choice,
    TensorFloat-32 in convolutions alone. The look-up of codes is exact with any of them."""
    channels_last: bool = False
    """Keep weights in the memory order channels last, which the matrix units of GPUs want with
    `mixed_precision`. Not measured on a GPU here; makes training slower on a CPU."""
    compile: bool = False
    """torch.compile, with static shapes, of the blocks of encoder, decoder, discriminator (but with `r1`) and
    LPIPS; needs torch 2.15. The first steps take minutes. Not measured on a GPU here."""
    cpu_threads: Count | None = None
    """Threads a process computes with on a CPU; null: the machine's cores, shared among its processes."""
    process_group_timeout_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    """Hours that a process waits for the others before the run fails, at most a year. Long, since the first
    process downloads weights and indexes the data while the others wait; a process that dies ends the run at
    once anyway, where torchrun or `accelerate launch` started it."""
    resume: Text = "auto"
    """auto: continue from the newest checkpoint in `output_dir` if there is one; never: start at step 0; or
    the path of a checkpoint to continue from."""
    checkpoint_every: Count = 1000
    """Optimizer steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; older ones are deleted."""
    best_metric: Literal["validation_psnr", "validation_ssim", "validation_lpips"] | None = None
    """Keep the best checkpoint, too: by this metric, as measured at its very step (`validate_every`). It is
    named in checkpoints/best.json. null: the newest alone are kept."""
    sample_every: Count = 500
    """Optimizer steps between sample images."""
    log_every: Count = 50
    """Optimizer steps between lines of metrics.jsonl."""
    validate_every: Count | None = None
    """Optimizer steps between measurements of the averaged weights on the validation images, logged as
    validation_psnr, validation_ssim and validation_lpips; null: only the finished run is measured."""
    ema_decay: ShareBelowOne | None = None
    """Decay per step of the weights' exponential moving average, which is then what is exported; null: no
    average."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this L2 norm, the discriminator's likewise; null: they are left alone."""
    guard: GuardConfig = GuardConfig()
    """What happens to updates from numbers that are not finite."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], FROM_LIST] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl; []: nowhere."""
    model: ModelConfig
    """The autoencoder."""
    freeze_encoder: bool = False
    """Train the decoder of `model.pretrained` alone: the encoder, and a VQ model's codebook, stay as they
    are, so that latents, their scale and denoisers of them stay valid. KL and VQ losses drop out; a KLVAE's
    decoder learns from samples of the posterior."""
    loss: LossConfig
    """What the autoencoder is trained on."""
    discriminator: DiscriminatorConfig | None = None
    """The adversarial loss's network; null where there is no adversarial loss."""
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
