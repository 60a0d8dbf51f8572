"""A teacher within a step against the textbook: one sum of losses, one backward pass of autograd's."""

import copy

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from torch.nn.parallel import DistributedDataParallel

from latentae import distributed
from latentae.discriminators import PatchGAN
from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.latents import Equivariance, LatentNoise
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.losses.teacher import (
    MatchedLevels,
    TeacherTerms,
    captured_outputs,
    decoder_levels,
    level_widths,
)
from latentae.models import KLVAE
from latentae.models.lean import make_lean
from latentae.training.adversary import Adversary
from latentae.training.latent_losses import LatentLosses, TrainableAutoencoder
from latentae.training.networks import freeze_encoder
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from latentae.training.teacher import Teacher
from tests.training.launch import in_two_ranks
from tests.training.small_networks import FeatureDistance, tiny_vqgan

LEVELS = (0, 1)
TERMS = TeacherTerms(output_weight=0.7, features_weight=0.3)
RANDOMNESS = StepRandomness(0, 5)


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=generator) * 2 - 1


def student_of(kind):
    torch.manual_seed(0)
    if kind == "vq":
        return tiny_vqgan("ema").double()
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return KLVAE(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=2, **blocks).double()


def with_another_decoder(autoencoder, widths):
    """A copy whose decoder has other weights and widths."""
    teacher = copy.deepcopy(autoencoder)
    torch.manual_seed(7)
    teacher.decoder = Decoder(
        in_channels=autoencoder.config.latent_channels,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=widths,
        norm_num_groups=4,
    )
    return teacher.double().eval().requires_grad_(False)


def make_step(
    kind="kl", *, widths=(12, 16), frozen=True, terms=TERMS, lean=False, adversarial=False, **losses
):
    """A step with a teacher. Its lowest level is as wide as the student's, the other one need not be."""
    student = student_of(kind)
    model = with_another_decoder(student, widths)
    if frozen:
        freeze_encoder(student)
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5).double()
    levels = LEVELS if terms.features_weight else ()
    matched = MatchedLevels(student.decoder, levels, level_widths(model.decoder, levels)) if levels else None
    trainable = TrainableAutoencoder(student, objective, matched=matched).double()
    if lean:
        make_lean(student)
    adversary = None
    if adversarial:
        torch.manual_seed(2)
        discriminator = PatchGAN(3, base_channels=8, num_layers=1).double()
        adversary = Adversary(discriminator, AdversarialTerms(weight=0.7))
    return TrainingStep(
        trainable,
        student.last_layer,
        objective,
        adversary,
        latent_losses=LatentLosses(2, **losses),
        latents_shape=student.latents_shape if kind == "kl" else None,
        teacher=Teacher(model, terms, shares_latents=frozen, levels=levels),
    )


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_gradients(module, loss):
    """What the step has left in a module is autograd's gradient of the loss, to 1e-10."""
    names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert len(names) > 20
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(actual, gradient, rtol=1e-10, atol=1e-12, msg=name)


def decode(model, latents):
    """The images and the activations of both levels."""
    with captured_outputs(decoder_levels(model.decoder, LEVELS)) as activations:
        decoded = model.decode(latents).sample
    return decoded, activations


def textbook(step, batch, latents):
    """The terms at latents: nll with the teacher's images, the features by hand, and the reconstruction."""
    trainable, teacher = step.autoencoder, step.teacher
    sample, own = decode(trainable.autoencoder, latents)
    with torch.no_grad():
        target, its = decode(teacher.model, latents)
    output = (sample - target).abs().mean()
    nll = step.objective(sample, batch)[0] + teacher.terms.output_weight * output
    features = torch.zeros((), dtype=torch.float64)
    if teacher.levels:
        for s, t in zip(trainable.matched(own), its, strict=True):
            error = (s - t).square().sum(dim=(1, 2, 3)) / t.square().sum(dim=(1, 2, 3))
            features = features + error.mean() / len(LEVELS)
    return nll, output, features, sample


def latents_of(step, batch, kind):
    if kind == "vq":
        return step.autoencoder.autoencoder.encode(batch).latents
    noise = RANDOMNESS.normal("posterior", len(batch), 2, 8, 8)
    posterior = step.autoencoder.autoencoder.encode(batch).latent_dist
    return posterior.mean + posterior.std * noise


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("widths", [(12, 16), (8, 16), (16, 32)])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_gradients_equal_the_textbook(kind, widths, lean):
    step, batch = make_step(kind, widths=widths, lean=lean), images()
    losses = step(batch, RANDOMNESS).losses
    nll, output, features, _ = textbook(step, batch, latents_of(step, batch, kind))
    assert losses["teacher_output"].item() == pytest.approx(output.item(), rel=1e-12)
    assert losses["teacher_features"].item() == pytest.approx(0.3 * features.item(), rel=1e-12)
    assert losses["loss"].item() == pytest.approx((nll + 0.3 * features).item(), rel=1e-12)
    assert output > 0.1
    assert features > 0.1
    assert_gradients(step.autoencoder, nll + 0.3 * features)
    projected = {name for name in gradients(step.autoencoder) if name.startswith("matched")}
    assert len(projected) == 2 * sum(own != its for own, its in zip((8, 16), widths, strict=True))
    assert all(p.grad is None for p in step.teacher.model.parameters())


@pytest.mark.parametrize("terms", [TERMS, TeacherTerms(0.7, 0.0), TeacherTerms(0.0, 0.3)])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_beside_a_discriminator(kind, terms):
    """The adaptive weight compares with all terms at the reconstruction, the teacher's images included."""
    step, batch = make_step(kind, terms=terms, adversarial=True), images()
    losses = step(batch, RANDOMNESS).losses
    nll, _, features, sample = textbook(step, batch, latents_of(step, batch, kind))
    discriminator, layer = step.adversary.discriminator, step.last_layer.weight
    generator = step.adversary.terms.loss.generator(discriminator(sample))
    first, second = (torch.autograd.grad(x, layer, retain_graph=True)[0].norm() for x in (nll, generator))
    factor = first / (second + 1e-4)
    assert losses["adaptive_factor"].item() == pytest.approx(factor.item(), rel=1e-10)
    assert_gradients(step.autoencoder, nll + terms.features_weight * features + 0.7 * factor * generator)
    assert any(p.grad is not None for p in discriminator.parameters())


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_both_decode_the_same_noisy_latents(kind):
    step, batch = make_step(kind, noise=LatentNoise(0.5)), images()
    step(batch, RANDOMNESS)
    latents = latents_of(step, batch, kind)
    noise = RANDOMNESS.normal("latent noise", *latents.shape)
    noisy = LatentNoise(0.5)(latents, noise, RANDOMNESS.normal("latent noise strength", 2))
    assert (noisy - latents).abs().max() > 0.1
    nll, _, features, _ = textbook(step, batch, noisy)
    assert_gradients(step.autoencoder, nll + 0.3 * features)


@pytest.mark.parametrize("transformed", [False, True])
def test_a_teacher_of_its_own_latents_reconstructs_the_target(transformed):
    """An encoder that learns: the teacher's images come from the images that the loss compares with."""
    always = Equivariance(probability=1.0, min_scale=0.5) if transformed else None
    step, batch = make_step(frozen=False, terms=TeacherTerms(0.7), equivariance=always), images()
    losses = step(batch, RANDOMNESS).losses
    target, latents = batch, latents_of(step, batch, "kl")
    if transformed:
        transform = always.draw(RANDOMNESS.generator("equivariance")).transform
        target, latents = transform.images(batch, 2), transform.latents(latents)
        assert target.shape != batch.shape
    sample = step.autoencoder.autoencoder.decode(latents).sample
    teacher = step.teacher.model
    distance = (sample - teacher(target).sample).abs().mean()
    assert losses["teacher_output"].item() == pytest.approx(distance.item(), rel=1e-12)
    nll = step.objective(sample, target)[0] + 0.7 * distance
    assert_gradients(step.autoencoder, nll)


def test_the_networks_run_once_and_the_teacher_s_encoder_never():
    step, calls = make_step(), []
    step.teacher.model.encoder = None
    modules = {
        "encoder": step.autoencoder.autoencoder.encoder,
        "decoder": step.autoencoder.autoencoder.decoder,
    }
    for name, module in {**modules, "teacher": step.teacher.model.decoder}.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    step(images(), RANDOMNESS)
    assert calls == ["encoder", "decoder", "teacher"]


def test_a_perfect_student_learns_nothing_from_its_teacher():
    # Without the images: the sign of a rounding error is a gradient of l1, too.
    step, plain = (make_step(widths=(8, 16), terms=TeacherTerms(0.0, 0.3)) for _ in range(2))
    batch = images()
    step.teacher.model = copy.deepcopy(step.autoencoder.autoencoder).eval()
    plain.teacher = None
    losses = step(batch, RANDOMNESS).losses
    expected = plain(batch, RANDOMNESS).losses
    assert losses["teacher_output"] < 1e-14
    assert losses["teacher_features"] < 1e-28
    torch.testing.assert_close(losses["loss"], expected["loss"], rtol=1e-14, atol=0)
    for name, gradient in gradients(plain.autoencoder).items():
        torch.testing.assert_close(gradients(step.autoencoder)[name], gradient, rtol=1e-9, atol=1e-12)


def test_accumulated_halves_equal_one_batch():
    whole, halves, batch = make_step(), make_step(), images(4)
    whole.latents_shape = halves.latents_shape = None  # noise belongs to a place in a micro-batch
    whole(batch, RANDOMNESS)
    halves.backward = lambda loss: (loss / 2).backward()
    for part in batch.split(2):
        halves(part, RANDOMNESS)
    for name, gradient in gradients(whole.autoencoder).items():
        torch.testing.assert_close(gradients(halves.autoencoder)[name], gradient, rtol=1e-9, atol=1e-13)


def _gradients_of_a_rank(folder):
    step, rank = make_step(), distributed.rank()
    trainable = step.autoencoder
    step.autoencoder = DistributedDataParallel(trainable)
    step(images()[rank : rank + 1], StepRandomness(0, 5, rank=rank, world_size=2))
    return {name: gradient.tolist() for name, gradient in gradients(trainable).items()}


def test_two_ranks_equal_one(tmp_path):
    whole = make_step()
    whole(images(), RANDOMNESS)
    for ranks in in_two_ranks(_gradients_of_a_rank, tmp_path):
        assert ranks.keys() == gradients(whole.autoencoder).keys()
        assert "matched.projections.1.weight" in ranks
        for name, gradient in gradients(whole.autoencoder).items():
            actual = torch.tensor(ranks[name], dtype=torch.float64)
            torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-13, msg=name)
