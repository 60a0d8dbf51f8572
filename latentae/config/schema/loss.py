"""The terms of the loss. The autoencoder is trained on their weighted sum; a null term is left out.

A new reconstruction loss is a section here and its name in the union `ReconstructionConfig`.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from latentae.config.schema.base import (
    FROM_LIST,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Section,
    Share,
    ShareBelowOne,
    Text,
)

_LogScale = Annotated[float, Field(ge=-30, le=20)]


class _Reconstruction(Section):
    """The keys of all reconstruction losses. Images and reconstructions are in [-1, 1]."""

    type: str
    weight: PositiveOrZero = 1.0
    """Weight of this term."""


class L1Config(_Reconstruction):
    """Mean absolute error."""

    type: Literal["l1"]


class L2Config(_Reconstruction):
    """Mean squared error."""

    type: Literal["l2"]


class CharbonnierConfig(_Reconstruction):
    """Mean of sqrt(error^2 + epsilon^2) (arXiv 1710.01992)."""

    type: Literal["charbonnier"]
    epsilon: Positive = 1e-3
    """Error below which the loss turns from absolute to quadratic; images are in [-1, 1]."""


class LikelihoodConfig(_Reconstruction):
    """The keys of likelihoods. With one, the log includes the ELBO and bits per dimension of 8-bit images."""

    learned: bool = True
    """Whether the variance (scale) is trained with the autoencoder (arXiv 2006.13202), without weight decay;
    false: it keeps its initial value."""
    learning_rate_scale: Positive = 100.0
    """Learning rate of the learned logarithm as a multiple of the autoencoder's. The logarithm has to change
    by about four units, and Adam changes it by at most about its learning rate per step."""
    scale_perceptual: bool = False
    """Divide the perceptual term by the variance (scale) too, as in latent diffusion: (error + weight x
    perceptual) / scale. A learned scale then converges to their sum."""


class GaussianConfig(LikelihoodConfig):
    """-log N(x; reconstruction, variance) per value, in nats, constants included."""

    type: Literal["gaussian"]
    log_variance: _LogScale = 0.0
    """Initial logarithm of the variance, shared by all values. Its optimum is the log of the mean squared
    error."""


class LaplaceConfig(LikelihoodConfig):
    """-log Laplace(x; reconstruction, scale) per value, in nats, constants included."""

    type: Literal["laplace"]
    log_scale: _LogScale = 0.0
    """Initial logarithm of the scale, shared by all values (latent diffusion's "logvar", also 0 there). Its
    optimum is the log of the mean absolute error."""


ReconstructionConfig: TypeAlias = Annotated[
    L1Config | L2Config | CharbonnierConfig | GaussianConfig | LaplaceConfig, Field(discriminator="type")
]


SMALLEST_IMAGE = {
    "alex": 31,  # an 11x11 convolution of stride 4, then two 3x3 max-pools of stride 2, leave one pixel
    "vgg": 16,  # four max-pools of stride 2 leave one pixel
}
"""Smallest image side, in pixels, on which the deepest layer of each perceptual trunk can be computed."""


class _Perceptual(Section):
    """The keys of all perceptual losses."""

    type: str
    trunk: Literal["alex", "vgg"] = "vgg"
    """Pretrained network: vgg as in taming-transformers; alex is smaller and faster."""
    weight: PositiveOrZero = 1.0
    """Weight of this term."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Number format of the pretrained network; null: bfloat16 with `mixed_precision` bf16, else float32.
    bfloat16 is several times faster on processors with matrix units, with some rounding in the gradient.
    Validation and evaluation always measure in float32."""


class LPIPSConfig(_Perceptual):
    """Distance between the features of a pretrained network (LPIPS, arXiv 1801.03924)."""

    type: Literal["lpips"]


class LPIPSLogitsConfig(_Perceptual):
    """LPIPS plus the distance between a classifier's logits (MaskBit, arXiv 2409.16211, and TiTok, arXiv
    2406.07550, in different ways). `perceptual` in the log is their sum."""

    type: Literal["lpips_logits"]
    classifier: Literal["convnext_small", "resnet50"] = "convnext_small"
    """ImageNet classifier, which sees images at 224x224 pixels: convnext_small as in TiTok's program, or
    resnet50 as in MaskBit, which is smaller and faster."""
    classifier_weights: Text | None = None
    """File with the classifier's weights under torchvision's names (.safetensors or .pth); null:
    torchvision's own, from its cache or downloaded once."""
    logits_weight: Positive = 0.1
    """Weight of the mean squared difference of the logits, relative to LPIPS."""


PerceptualConfig: TypeAlias = Annotated[LPIPSConfig | LPIPSLogitsConfig, Field(discriminator="type")]


class LinearScheduleConfig(Section):
    """The weight rises linearly from 0, once."""

    type: Literal["linear"]
    warmup_steps: Count
    """Optimizer steps until the weight is reached."""


class CyclicalScheduleConfig(Section):
    """The weight rises from 0 once per cycle (arXiv 1903.10145)."""

    type: Literal["cyclical"]
    cycle_steps: Count
    """Optimizer steps per cycle; `max_steps` / `cycles` in the paper."""
    cycles: Count = 4
    """Number of cycles. After them the weight stays constant."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a cycle in which the weight rises. In the rest of the cycle it is constant."""


KLScheduleConfig: TypeAlias = Annotated[
    LinearScheduleConfig | CyclicalScheduleConfig, Field(discriminator="type")
]


class FreeBitsConfig(Section):
    """The divergence, averaged over the batch, is not penalised below a threshold (arXiv 1606.04934)."""

    nats: Positive
    """Threshold per group of an image's latents; 1 bit is 0.693 nats."""
    per: Literal["channel", "image"] = "channel"
    """The groups. channel: one group per channel, summed over its positions, as in the paper. image: all
    latents of an image."""


class KLConfig(Section):
    """Divergence of a KLVAE's posterior q(z|x) and the prior p = N(0, I) (arXiv 1312.6114)."""

    weight: PositiveOrZero = 1e-6
    """Weight of the divergence in nats, summed over the latents of an image, relative to the reconstruction
    loss summed over the values of the image. This is latent diffusion's convention; Stable Diffusion uses
    1e-6. Because the other terms are means per value, the sum over latents is divided by the number of values
    of the image. With a likelihood, 1 gives the ELBO."""
    schedule: KLScheduleConfig | None = None
    """Schedule of the weight; null: constant from the start."""
    divergence: Literal["forward", "reverse", "jeffreys"] = "forward"
    """forward: KL(q || p), as in the ELBO. reverse: KL(p || q), which penalises posteriors with a small
    variance. jeffreys: the sum of both."""
    initial_log_variance: _LogScale | None = None
    """Log-variance of the posterior at the first step of a model with fresh weights. null: about 0, as random
    weights give it. Samples then are mostly noise, and the decoder learns little until the variance has
    fallen. With `model.pretrained` that model's posterior is kept."""
    free_bits: FreeBitsConfig | None = None
    """Threshold below which the divergence is not penalised; null: all of it is."""


class EquivarianceConfig(Section):
    """Some steps compare decode(t(z)) with t(x), where t scales and rotates (EQ-VAE, arXiv 2502.09509). Steps
    then take less time on average. `reconstruction` in the log is the mean over all steps."""

    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the steps whose latents are transformed. A step uses one t for all its images and losses."""
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest scale factor. The factor is drawn uniformly from here to 1; 1: no scaling."""
    rotate: bool = True
    """Also rotate by 90, 180 or 270 degrees."""
    low_resolution_probability: Share = 0.25
    """Share of the other steps in which the images are scaled down before encoding."""


class LatentNoiseConfig(Section):
    """The decoder receives z + sigma s n. n is standard normal noise, sigma = |N(0, scale^2)| is drawn per
    image, s is the standard deviation of the batch's latents (noise-augmented decoding of RAE, arXiv
    2510.11690)."""

    scale: Positive
    """Typical noise relative to the latents' standard deviation. RAE uses 0.8 with 768 channels. Latents with
    4 to 16 channels are less redundant; start with 0.1."""


class AlignmentConfig(Section):
    """Pulls projected latents towards a frozen network's features, and the similarities between latents
    towards those between features (VF loss of VA-VAE, arXiv 2501.01423)."""

    network: Text = "facebook/dinov2-large"
    """A vision transformer as hub id or transformers folder (pip install latentae[dinov2]), or vgg16, which
    works offline but is clearly weaker than DINOv2."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Number format of the frozen network; null: bfloat16 with `mixed_precision` bf16, else float32."""
    weight: Positive = 0.1
    """Weight of this term, multiplied by the adaptive weight if `adaptive` is true."""
    adaptive: bool = True
    """Multiply by |gradient of reconstruction and perceptual loss| / (|gradient of this term| + 1e-4) at the
    encoder's last convolution. This costs another backward pass through the decoder."""
    cosine_margin: Share = 0.5
    """1 - cos(latent, feature) is not penalised below this value."""
    similarity_margin: Share = 0.25
    """The difference between the cosine of two latents and the cosine of their two features is not penalised
    below this value."""


class SpectralConfig(Section):
    """Additional term: downscaled latents must decode to downscaled images (scale equivariance, arXiv
    2502.14831). The decoder runs a second time, on a quarter of the pixels or fewer."""

    weight: Positive = 0.25
    """Weight of the reconstruction and perceptual loss of the downscaled images."""
    factors: Annotated[tuple[Annotated[int, Field(ge=2)], ...], FROM_LIST, Field(min_length=1)] = (2, 4)
    """Factors by which the sides are divided. Each step uses one of them at random."""


class TeacherConfig(Section):
    """Distillation: the autoencoder learns to imitate a trained and frozen model, the teacher. With
    `freeze_encoder` the teacher decodes the latents of the run and must have the same encoder. With
    `latents_weight` the encoder learns the teacher's latents, and the decoder decodes these, as in TAESD.
    With neither the teacher encodes the images for itself, and only `output_weight` may be used."""

    model: Text | None = None
    """The teacher: what `load_autoencoder` opens; null: `model.pretrained`, as it was before training. A
    resumed run needs it again."""
    output_weight: PositiveOrZero = 1.0
    """Weight of the mean absolute difference between the reconstruction and the teacher's, in the unit of
    `loss.reconstruction: {type: l1}`."""
    features_weight: PositiveOrZero = 0.0
    """Weight of the difference between activations of both decoders: mean (s - t)^2 / mean t^2 per image and
    level, with t of the teacher (hints of FitNets, arXiv 1412.6550, relative to the teacher). Where widths
    differ, s goes through a learned 1x1 convolution. 0: off."""
    latents_weight: PositiveOrZero = 0.0
    """Weight of the mean squared difference between the encoder's latents (a posterior's mean) and the
    teacher's (its mode), as a denoiser sees them: after shift and scale, or after the normalisation of
    FLUX.2. The decoder receives the teacher's latents, so no other loss trains the encoder. The model takes
    the teacher's scale, and replaces it before the same denoiser. Latents must have the same size. 0: off."""
    levels: Annotated[tuple[CountOrZero, ...], FROM_LIST, Field(min_length=1)] = (0, 1)
    """Decoder levels that `features_weight` compares. 0 is the lowest resolution, that of the latents; each
    further level doubles it."""


class LeCAMConfig(Section):
    """Regularises the discriminator: keeps its logits for images and for reconstructions close to each other
    (LeCAM, arXiv 2104.03310)."""

    weight: Positive
    """Weight of E relu(D(real) - average of D(fake))^2 + E relu(average of D(real) - D(fake))^2 in the
    discriminator's loss (0.001 in TiTok)."""
    decay: ShareBelowOne = 0.999
    """Decay per optimizer step of the moving averages of the logits."""


class AdversarialConfig(Section):
    """The loss that a discriminator gives the reconstruction (VQGAN, arXiv 2012.09841)."""

    type: Literal["hinge", "non_saturating", "least_squares"]
    """Loss of the discriminator D, then loss of the autoencoder, whose reconstruction is fake. hinge: (E
    relu(1 - D(real)) + E relu(1 + D(fake))) / 2, and -E D(fake). non_saturating: (E softplus(-D(real)) + E
    softplus(D(fake))) / 2, and E softplus(-D(fake)). least_squares: (E (D(real) - 1)^2 + E D(fake)^2) / 2,
    and E (D(fake) - 1)^2 / 2."""
    weight: PositiveOrZero = 0.8
    """Weight of this term, multiplied by the adaptive weight if `adaptive` is true."""
    adaptive: bool = True
    """Multiply by |gradient of the other terms| / (|gradient of this term| + 1e-4) at the decoder's last
    convolution (VQGAN, eq. 7)."""
    min_adaptive_weight: PositiveOrZero = 0.0
    """Lower limit of the adaptive weight."""
    max_adaptive_weight: Positive = 1e4
    """Upper limit of the adaptive weight."""
    start_step: CountOrZero
    """Optimizer step from which this term counts. Choose it late enough that reconstructions are
    recognisable."""
    ramp_steps: CountOrZero = 0
    """Optimizer steps from `start_step` on over which the weight rises linearly; 0: full weight at once."""
    discriminator_warmup_steps: CountOrZero = 0
    """Optimizer steps before `start_step` in which the discriminator already trains, without any effect on
    the autoencoder."""
    lecam: LeCAMConfig | None = None
    """LeCAM regularisation, which keeps a winning discriminator's logits from drifting apart; null: none."""


class LossConfig(Section):
    """The terms of the autoencoder's loss."""

    reconstruction: ReconstructionConfig
    """Reconstruction loss, per pixel."""
    perceptual: PerceptualConfig | None = None
    """Perceptual loss; null: none."""
    kl: KLConfig | None = None
    """Divergence of a KLVAE's posterior; null: none, and the latents are the posterior's mode (a plain
    autoencoder)."""
    equivariance: EquivarianceConfig | None = None
    """Make latents scale and rotate as the images do (EQ-VAE); null: off."""
    latent_noise: LatentNoiseConfig | None = None
    """Add noise to the latents, so that the decoder learns to tolerate it (RAE); null: off."""
    alignment: AlignmentConfig | None = None
    """Make latents resemble a frozen network's features (VA-VAE); null: off."""
    spectral: SpectralConfig | None = None
    """Make downscaled latents decode to downscaled images; null: off."""
    teacher: TeacherConfig | None = None
    """Imitate a trained model (distillation); null: off."""
    adversarial: AdversarialConfig | None = None
    """Adversarial loss; null: none. A VQVAE must have none, a VQGAN must have one."""
