"""Each regulariser within a step against the textbook: one loss, one backward pass of autograd's."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from latentae.discriminators import PatchGAN
from latentae.losses.adversarial import AdversarialTerms
from latentae.losses.feature_maps import FeatureMaps
from latentae.losses.kl import KLRegulariser
from latentae.losses.latents import Alignment, Equivariance, LatentNoise, Spectral, low_pass
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.models import KLVAE
from latentae.models.lean import make_lean
from latentae.training.adversary import Adversary
from latentae.training.latent_losses import AlignedFeatures, LatentLosses, TrainableAutoencoder
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from tests.training.small_networks import FeatureDistance, tiny_vqgan

ALWAYS = Equivariance(probability=1.0, min_scale=0.5)


class Grey(FeatureMaps):
    """Two features a latent: means of the normalised images, and of their squares."""

    channels = 2

    def features(self, images, size):
        pixels = self.normalised(images).mean(dim=1, keepdim=True)
        return nn.functional.adaptive_avg_pool2d(torch.cat([pixels, pixels.square()], dim=1), size)


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def kl_vae():
    return KLVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
    ).double()


def networks(kind="kl"):
    torch.manual_seed(0)
    autoencoder = kl_vae() if kind == "kl" else tiny_vqgan("ema").double()
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5).double()
    projection = nn.Conv2d(autoencoder.latents_channels, 2, 1, bias=False).double()
    return TrainableAutoencoder(autoencoder, objective, projection=projection), objective


def make_step(trainable, objective, adversary=None, alignment=None, **losses):
    autoencoder = trainable.autoencoder
    aligned = None
    if alignment is not None:
        aligned = AlignedFeatures(alignment, Grey().double(), autoencoder.encoder.conv_out)
    is_kl = isinstance(autoencoder, KLVAE)
    return TrainingStep(
        trainable,
        autoencoder.last_layer,
        objective,
        adversary,
        regulariser=KLRegulariser(0.1) if is_kl else None,
        latent_losses=LatentLosses(2, alignment=aligned, **losses),
        latents_shape=autoencoder.latents_shape if is_kl else None,
    )


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_gradients(module, loss):
    """What the step has left in a module is autograd's gradient of the loss."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-13, msg=name)


def encode(trainable, images, randomness):
    """Latents as the step has them, with the output of the usual forward for the KL term."""
    noise = randomness.normal("posterior", len(images), *trainable.autoencoder.latents_shape(images))
    output = trainable.autoencoder(images, noise=noise)
    return output.latents, KLRegulariser(0.1)(output)["kl"]


def test_transformed_latents_are_compared_with_transformed_images(images):
    trainable, objective = networks()
    randomness = StepRandomness(0, 5)
    result = make_step(trainable, objective, equivariance=ALWAYS)(images, randomness)
    transform = ALWAYS.draw(randomness.generator("equivariance")).transform
    latents, _ = encode(trainable, images, randomness)
    sample = trainable.autoencoder.decode(transform.latents(latents)).sample
    loss, _ = objective(sample, transform.images(images, 2))
    assert sample.shape != images.shape
    assert result.losses["equivariance"].item() == pytest.approx(loss.item(), rel=1e-12)
    # The weight is by the values of what is decoded, as in a sum over them.
    output = trainable.autoencoder(images, noise=randomness.normal("posterior", 2, 2, 8, 8))
    kl = KLRegulariser(0.1)(output)["kl"] * images[0].numel() / sample[0].numel()
    assert_gradients(trainable, loss + kl)


def test_small_images_are_images(images):
    """Where images are made smaller before they are encoded, all is as with such images."""
    low = Equivariance(probability=1e-12, min_scale=0.5, low_resolution_probability=1.0)
    trainable, objective = networks()
    randomness = StepRandomness(0, 5)
    draw = low.draw(randomness.generator("equivariance"))
    assert draw.before_encoding
    spectral = {"spectral": Spectral(), "alignment": Alignment(adaptive=False)}
    result = make_step(trainable, objective, equivariance=low, **spectral)(images, randomness)
    expected, other = networks()
    small = draw.transform.images(images, 2)
    again = make_step(expected, other, alignment=Alignment(adaptive=False))(small, randomness)
    assert result.losses.keys() == again.losses.keys()  # so no spectral term
    assert result.losses["loss"].item() == again.losses["loss"].item()
    for name, gradient in gradients(expected).items():
        assert torch.equal(gradients(trainable)[name], gradient), name


def test_noise_is_added_before_decoding(images):
    trainable, objective = networks()
    randomness = StepRandomness(0, 5)
    make_step(trainable, objective, noise=LatentNoise(0.5))(images, randomness)
    latents, kl = encode(trainable, images, randomness)
    noise = randomness.normal("latent noise", 2, 2, 8, 8)
    noisy = LatentNoise(0.5)(latents, noise, randomness.normal("latent noise strength", 2))
    assert (noisy - latents).abs().max() > 0.1
    loss, _ = objective(trainable.autoencoder.decode(noisy).sample, images)
    assert_gradients(trainable, loss + kl)


@pytest.mark.parametrize("lean", [False, True])
def test_low_passed_latents_are_decoded_too(images, lean):
    trainable, objective = networks()
    if lean:
        make_lean(trainable.autoencoder)
    randomness = StepRandomness(0, 5)
    result = make_step(trainable, objective, spectral=Spectral(0.3, [2]))(images, randomness)
    latents, kl = encode(trainable, images, randomness)
    whole, _ = objective(trainable.autoencoder.decode(latents).sample, images)
    small, _ = objective(trainable.autoencoder.decode(low_pass(latents, 2)).sample, low_pass(images, 2, 2))
    assert result.losses["spectral"].item() == pytest.approx(0.3 * small.item(), rel=1e-12)
    assert_gradients(trainable, whole + kl + 0.3 * small)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_alignment(images, adaptive, lean):
    trainable, objective = networks()
    if lean:
        make_lean(trainable.autoencoder)
    alignment, randomness = (
        Alignment(0.2, adaptive, cosine_margin=0.1, similarity_margin=0.1),
        StepRandomness(0, 5),
    )
    result = make_step(trainable, objective, alignment=alignment)(images, randomness)
    latents, kl = encode(trainable, images, randomness)
    whole, _ = objective(trainable.autoencoder.decode(latents).sample, images)
    features = Grey().double()(images, (8, 8))
    vf = sum(alignment(trainable.projection(latents), features))
    weight = torch.tensor(0.2, dtype=torch.float64)
    if adaptive:
        layer = trainable.autoencoder.encoder.conv_out.weight
        first, second = (torch.autograd.grad(x, layer, retain_graph=True)[0].norm() for x in (whole, vf))
        weight = weight * first / (second + 1e-4)
    assert result.losses["alignment_weight"].item() == pytest.approx(weight.item(), rel=1e-8)
    assert result.losses["alignment"].item() == pytest.approx((weight * vf).item(), rel=1e-8)
    assert vf > 0.1
    assert_gradients(trainable, whole + kl + weight * vf)


def test_a_second_decoding_does_not_count_for_a_codebook(images):
    """The second pass changes neither the statistics of the codes nor the adaptive weight."""
    plain, more = (networks("vq") for _ in range(2))
    states, results = [], []
    for (trainable, objective), losses in ((plain, {}), (more, {"spectral": Spectral(0.3, [2])})):
        adversary = Adversary(adversarial_network(), AdversarialTerms(weight=0.7))
        results.append(make_step(trainable, objective, adversary, **losses)(images, StepRandomness(0, 5)))
        quantizer = trainable.autoencoder.quantize
        assert not quantizer.frozen
        quantizer.commit(1, torch.Generator().manual_seed(0))
        states.append(quantizer.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert torch.equal(results[0].losses["adaptive_factor"], results[1].losses["adaptive_factor"])
    assert not torch.equal(
        gradients(plain[0])["autoencoder.encoder.conv_in.weight"],
        gradients(more[0])["autoencoder.encoder.conv_in.weight"],
    )


def adversarial_network():
    torch.manual_seed(2)
    return PatchGAN(3, base_channels=8, num_layers=1).double()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_adversary_sees_what_the_losses_see(images, kind):
    """All of them at once, with an adversarial loss: the sum of its parts, and finite."""
    trainable, objective = networks(kind)
    discriminator = adversarial_network()
    seen = []
    discriminator.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    adversary = Adversary(discriminator, AdversarialTerms(weight=0.7))
    everything = {"noise": LatentNoise(0.2), "spectral": Spectral(0.3, [2]), "alignment": Alignment(0.2)}
    step = make_step(trainable, objective, adversary, equivariance=ALWAYS, **everything)
    randomness = StepRandomness(0, 5)
    losses = step(images, randomness).losses
    transform = ALWAYS.draw(randomness.generator("equivariance")).transform
    fake, real = seen
    assert torch.equal(real, transform.images(images, 2))
    assert fake.shape == real.shape
    parts = ("spectral", "alignment", *(("kl",) if kind == "kl" else ("commitment",)))
    total = losses["equivariance"] + sum(losses[name] for name in parts)
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-10)
    assert all(value.isfinite() for value in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(trainable).values())
    assert gradients(trainable)["projection.weight"].abs().max() > 0


def test_draws_are_those_of_the_global_batch(images):
    """Two ranks' halves are changed as in one rank's whole, noise and all."""
    losses = LatentLosses(2, equivariance=ALWAYS, noise=LatentNoise(0.5), spectral=Spectral())
    latents = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(
        2, -1, -1, -1
    )
    whole = losses.prepare(images, StepRandomness(0, 5))
    for rank in range(2):
        half = losses.prepare(images[rank : rank + 1], StepRandomness(0, 5, rank=rank, world_size=2))
        assert torch.equal(half.target, whole.target[rank : rank + 1])
        assert torch.equal(half.low_passed, whole.low_passed[rank : rank + 1])
        torch.testing.assert_close(
            half.arguments["change"](latents[:1]), whole.arguments["change"](latents)[rank : rank + 1]
        )


def test_nothing_is_done_without(images):
    prepared = LatentLosses().prepare(images, StepRandomness(0, 0))
    assert prepared.images is prepared.target is images
    assert prepared.arguments == {}
    assert LatentLosses().encoder_output is None


def test_nothing_waits_for_the_device(monkeypatch):
    """On the meta device, whose tensors have no values, whatever reads one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # meta knows none
    trainable, objective = (copy.deepcopy(x).to("meta") for x in networks())
    everything = {"noise": LatentNoise(0.2), "spectral": Spectral(0.3, [2]), "alignment": Alignment(0.2)}
    step = make_step(trainable, objective, equivariance=ALWAYS, **everything)
    step.latent_losses.alignment.network.to("meta")
    images = torch.empty(2, 3, 16, 16, dtype=torch.float64, device="meta")
    losses = step(images, StepRandomness(0, 1, device="meta")).losses
    assert {"equivariance", "spectral", "alignment", "alignment_weight"} <= losses.keys()
    assert {value.device.type for value in losses.values()} == {"meta"}
