"""An encoder that learns a teacher's latents: the step by hand, and whole runs."""

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from latentae import KLVAE, distributed, load_autoencoder
from latentae.config import load_config
from latentae.losses.latents import LatentNoise
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.losses.teacher import MatchedLevels, TeacherTerms, level_widths
from latentae.models import VQVAE, Flux2VAE, TinyAutoencoder
from latentae.training.latent_losses import LatentLosses, TrainableAutoencoder
from latentae.training.randomness import StepRandomness
from latentae.training.step import TrainingStep
from latentae.training.teacher import Teacher
from latentae.training.trainer import Trainer
from tests.training.launch import flatten, in_two_ranks, log_lines, states_of
from tests.training.pretrained_models import make_pretrained, write_pretrained
from tests.training.small_networks import FeatureDistance
from tests.training.test_alpha import cut_out

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SMALL = {"norm_num_groups": 4, "latent_channels": 2, **BLOCKS}
TERMS = TeacherTerms(output_weight=0.7, latents_weight=2.0)
RANDOMNESS = StepRandomness(0, 5)
SCALE, SHIFT = 0.4, 0.25


# The step


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, dtype=torch.float64, generator=generator) * 2 - 1


def teacher_of(kind):
    torch.manual_seed(7)
    if kind == "flux2":
        model = Flux2VAE(block_out_channels=(8, 16), **SMALL)
        model.set_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8))
    elif kind == "tiny":
        widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        model = TinyAutoencoder(latent_channels=2, **widths, **blocks)
    else:
        model = KLVAE(block_out_channels=(8, 16), scaling_factor=SCALE, shift_factor=SHIFT, **SMALL)
    return model.double().eval().requires_grad_(False)


def make_step(kind="kl", *, terms=TERMS, samples=True, **losses):
    torch.manual_seed(0)
    student = KLVAE(block_out_channels=(8, 8), **SMALL).double()
    objective = ReconstructionObjective(l1, perceptual=FeatureDistance(), perceptual_weight=0.5).double()
    model, matched, levels = teacher_of(kind), None, (0, 1) if terms.features_weight else ()
    if levels:
        matched = MatchedLevels(student.decoder, levels, level_widths(model.decoder, levels))
    teacher = Teacher(model, terms, shares_latents=False, student=student, levels=levels)
    teacher.hand_over_scale(student)
    return TrainingStep(
        TrainableAutoencoder(student, objective, matched=matched).double(),
        student.last_layer,
        objective,
        latent_losses=LatentLosses(2, **losses),
        latents_shape=student.latents_shape if samples else None,
        teacher=teacher,
    )


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_gradients(module, loss):
    """What the step has left in a module is autograd's gradient of the loss."""
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("kind", ["kl", "flux2", "tiny"])
def test_the_encoder_regresses_and_the_decoder_decodes_the_teacher_s_latents(kind, noisy):
    step = make_step(kind, **({"noise": LatentNoise(0.5)} if noisy else {}))
    student, teacher, batch = step.autoencoder.autoencoder, step.teacher.model, images()
    losses = step(batch, RANDOMNESS).losses

    # What a denoiser sees of both, by the formulas of their pipelines.
    mode, mean = teacher.encode(batch).latents, student.encode(batch).latent_dist.mean
    if kind == "kl":  # equal scales: both may be compared unscaled, and the decoder takes the teacher's
        regression, given = SCALE**2 * (mean - mode).square().mean(), mode
        assert (student.config.scaling_factor, student.config.shift_factor) == (SCALE, SHIFT)
    elif kind == "tiny":
        regression, given = (mean - mode).square().mean(), mode
    else:
        patches = torch.nn.functional.pixel_unshuffle(mode, 2)
        center, variance = teacher.bn.running_mean, teacher.bn.running_var
        scaled = (patches - center[:, None, None]) / (variance[:, None, None] + 1e-4).sqrt()
        given = torch.nn.functional.pixel_shuffle(scaled, 2)
        regression = (mean - given).square().mean()
    its_own = mode
    if noisy:
        noise = RANDOMNESS.normal("latent noise", *given.shape)
        clean, given = given, LatentNoise(0.5)(given, noise, RANDOMNESS.normal("latent noise strength", 2))
        assert (given - clean).abs().max() > 0.1 * clean.std()
        its_own = given
        if kind == "flux2":
            patches = torch.nn.functional.pixel_unshuffle(given, 2)
            raw = patches * (variance[:, None, None] + 1e-4).sqrt() + center[:, None, None]
            its_own = torch.nn.functional.pixel_shuffle(raw, 2)

    sample = student.decode(given).sample
    distance = (sample - teacher.decode(its_own).sample).abs().mean()
    nll = step.objective(sample, batch)[0] + 0.7 * distance
    assert losses["teacher_latents"].item() == pytest.approx(regression.item(), rel=1e-9)
    assert losses["teacher_output"].item() == pytest.approx(distance.item(), rel=1e-9)
    assert losses["loss"].item() == pytest.approx((nll + 2 * regression).item(), rel=1e-9)
    assert regression > 0.01
    # The encoder learns nothing else.
    encoder = [p for name, p in student.named_parameters() if name.startswith(("encoder", "quant_conv"))]
    alone = torch.autograd.grad(2 * regression, encoder, retain_graph=True)
    for parameter, gradient in zip(encoder, alone, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    assert_gradients(student, nll + 2 * regression)


def test_features_are_of_the_same_latents():
    step = make_step(terms=TeacherTerms(0.0, 0.3, 1.0))
    step.teacher.model.decoder.load_state_dict(step.teacher.model.decoder.state_dict())
    student = step.autoencoder.autoencoder
    student.decoder = copy.deepcopy(step.teacher.model.decoder).requires_grad_(True)
    student.post_quant_conv = copy.deepcopy(step.teacher.model.post_quant_conv)
    levels = (0, 1)
    step.last_layer = student.last_layer
    step.autoencoder.matched = MatchedLevels(student.decoder, levels, level_widths(student.decoder, levels))
    losses = step(images(), RANDOMNESS).losses
    assert losses["teacher_features"] < 1e-20
    assert losses["teacher_output"] < 1e-12
    assert losses["teacher_latents"] > 0.01


def test_a_teacher_that_is_not_decoded_runs_its_encoder_once():
    step, calls = make_step(terms=TeacherTerms(0.0, 0.0, 1.0)), []
    step.teacher.model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    step.teacher.model.decoder = None
    losses = step(images(), RANDOMNESS).losses
    assert calls == ["encoder"]
    assert "teacher_output" not in losses
    assert losses["loss"].item() == pytest.approx(
        (losses["reconstruction"] + 0.5 * losses["perceptual"] + losses["teacher_latents"]).item()
    )


def test_an_equal_encoder_has_nothing_to_learn():
    step = make_step(terms=TeacherTerms(0.0, 0.0, 1.0))
    student, teacher = step.autoencoder.autoencoder, step.teacher.model
    student.encoder, student.quant_conv = (
        copy.deepcopy(part).requires_grad_(True) for part in (teacher.encoder, teacher.quant_conv)
    )
    assert step(images(), RANDOMNESS).losses["teacher_latents"] < 1e-28


def test_a_teacher_encodes_what_the_encoder_of_an_upscaling_model_sees():
    torch.manual_seed(0)
    student = KLVAE(block_out_channels=(8, 8), upscale=2, **SMALL).double()
    teacher = Teacher(teacher_of("kl"), TERMS, shares_latents=False, student=student, upscale=2)
    teacher.hand_over_scale(student)
    objective = ReconstructionObjective(l1).double()
    losses = LatentLosses(2, 2)
    step = TrainingStep(student, student.last_layer, objective, latent_losses=losses, teacher=teacher)
    batch = images()
    found = step(batch, RANDOMNESS).losses
    small = torch.nn.functional.avg_pool2d(batch, 2)
    mode = teacher.model.encode(small).latents
    regression = SCALE**2 * (student.encode(small).latents - mode).square().mean()
    sample = student.decode(mode).sample
    assert sample.shape == batch.shape
    target = teacher.model.decode(mode).sample
    distance = (torch.nn.functional.avg_pool2d(sample, 2) - target).abs().mean()
    assert found["teacher_latents"].item() == pytest.approx(regression.item(), rel=1e-9)
    assert found["teacher_output"].item() == pytest.approx(distance.item(), rel=1e-9)
    assert_gradients(student, (sample - batch).abs().mean() + 0.7 * distance + 2 * regression)


def test_accumulated_halves_equal_one_batch():
    whole, halves = make_step(samples=False), make_step(samples=False)
    whole(images(4), RANDOMNESS)
    halves.backward = lambda loss: (loss / 2).backward()
    for part in images(4).split(2):
        halves(part, RANDOMNESS)
    for name, gradient in gradients(whole.autoencoder).items():
        torch.testing.assert_close(gradients(halves.autoencoder)[name], gradient, rtol=1e-9, atol=1e-13)


def _gradients_of_a_rank(folder):
    step, rank = make_step(), distributed.rank()
    trainable = step.autoencoder
    step.autoencoder = DistributedDataParallel(trainable)
    step(images()[rank : rank + 1], StepRandomness(0, 5, rank=rank, world_size=2))
    return {name: gradient.tolist() for name, gradient in gradients(trainable).items()}


# Whole runs

SECTION = "loss.teacher={{model: {place}, output_weight: 0.5, latents_weight: 1.0}}"
OWN = ("model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "optimizer.schedule=constant")


def run(tiny, place, *words, section=SECTION):
    given = ["--config", str(tiny.file), *OWN, "log_every=1", section.format(place=place), *words]
    return load_config("kl_vae", given)


@pytest.fixture
def place(tmp_path):
    model = make_pretrained(KLVAE, norm_num_groups=4, scaling_factor=0.37, shift_factor=0.1)
    return write_pretrained(model, tmp_path, "diffusers folder")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_equals_uninterrupted_and_keeps_the_teacher_s_scale(tiny, tmp_path, place, precision):
    words = ("loss.kl=null", "loss.latent_noise={scale: 0.2}", f"mixed_precision={precision}")
    words += ("gradient_accumulation_steps=2",)
    states = {}
    for name, steps in (("whole", [4]), ("halves", [2, 4])):
        for count in steps:
            trainer = Trainer(run(tiny, place, *words, f"output_dir={tmp_path}/{name}", f"max_steps={count}"))
            summary = trainer.fit()
        states[name] = flatten(states_of(trainer))
    assert any("gives its latents" in line for line in trainer.networks.describe())
    for name, value in states["whole"].items():
        other = states["halves"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    whole, halves = log_lines(tmp_path / "whole"), log_lines(tmp_path / "halves")
    assert whole == halves
    assert whole[-1]["teacher_latents"] < whole[0]["teacher_latents"]
    assert summary["scale_source"] == "of the teacher"
    exported = load_autoencoder(tmp_path / "halves")
    assert (exported.config.scaling_factor, exported.config.shift_factor) == (0.37, 0.1)
    assert exported.state_dict().keys() == load_autoencoder(place).state_dict().keys()


def test_two_ranks_equal_one(tmp_path):
    whole = make_step()
    whole(images(), RANDOMNESS)
    for ranks in in_two_ranks(_gradients_of_a_rank, tmp_path):
        for name, gradient in gradients(whole.autoencoder).items():
            actual = torch.tensor(ranks[name], dtype=torch.float64)
            torch.testing.assert_close(actual, gradient, rtol=1e-9, atol=1e-13, msg=name)


def test_a_tiny_student_learns_scaled_latents(tiny, tmp_path, place):
    config = tmp_path / "student.yaml"
    text = tiny.file.read_text().replace("class: VQGAN", "class: TinyAutoencoder")
    dropped = ("quantizer", "norm_num_groups")
    config.write_text("\n".join(x for x in text.splitlines() if not x.strip().startswith(dropped)))
    tiny.file = config
    words = ("model.class=TinyAutoencoder", "max_steps=2", f"output_dir={tmp_path}/run")
    trainer = Trainer(run(tiny, place, *words))
    batch = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    student, teacher = trainer.networks.autoencoder, trainer.networks.step.teacher.model
    step = trainer.networks.step
    found = step(batch, StepRandomness(0, 0)).losses["teacher_latents"].item()
    with torch.no_grad():
        target = (teacher.encode(batch).latent_dist.mode() - 0.1) * 0.37
        expected = (student.encode(batch).latents - target).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-5)
    summary = trainer.fit()
    assert (summary["scaling_factor"], summary["shift_factor"]) == (1.0, 0.0)
    assert load_autoencoder(tmp_path / "run").config.scaling_factor == 1.0


def test_transparent_images_are_given_to_a_teacher_of_four_channels(tiny, tmp_path):
    model = make_pretrained(KLVAE, in_channels=4, out_channels=4)
    place = write_pretrained(model, tmp_path, "our folder")
    cut_out(tmp_path / "images")
    words = ("model.in_channels=4", "data.alpha=true", "max_steps=1", f"output_dir={tmp_path}/run")
    step = Trainer(run(tiny, place, *words)).networks.step
    batch = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = step(batch, StepRandomness(0, 0)).losses
    with torch.no_grad():
        mode = step.teacher.model.encode(batch).latents
        teacher, student = step.teacher.model.decode(mode).sample, step.teacher.student.decode(mode).sample
    alpha = ((teacher[:, 3:] + 1) / 2).clamp(0, 1)
    colours = alpha * (student[:, :3] - teacher[:, :3]).abs()
    errors = torch.cat([colours, (student[:, 3:] - teacher[:, 3:]).abs()], dim=1)
    assert losses["teacher_output"].item() == pytest.approx(errors.mean().item(), rel=1e-4)


def test_teachers_whose_latents_cannot_be_learned(tiny, tmp_path):
    def refusal(model):
        model.save_pretrained(tmp_path / "teacher")
        with pytest.raises(ValueError, match="cannot be used") as caught:
            Trainer(run(tiny, tmp_path / "teacher", f"output_dir={tmp_path}/run"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    found = refusal(make_pretrained(KLVAE, latent_channels=6))
    assert "it has 6 latent channels, and the run has 4; name a model with latents of the run's size" in found
    levels = {"block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3}
    deeper = make_pretrained(KLVAE, **levels, up_block_types=("UpDecoderBlock2D",) * 3)
    assert "it has 4 pixels per latent, and the run has 2" in refusal(deeper)
    assert "codes of its codebook" in refusal(make_pretrained(VQVAE))
    unknown = make_pretrained(KLVAE)
    unknown.change_config(scaling_factor=None)
    found = refusal(unknown)
    assert "the scale of its latents is not known" in found
    assert "scripts/latent_stats.py" in found
