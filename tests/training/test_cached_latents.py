"""Runs whose decoder learns from cached latents: as without them, but for the encoder's work."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from latentae import KLVAE, VQVAE, load_autoencoder
from latentae.config import ConfigError
from latentae.data import training_loader
from latentae.latents.cache import encode_dataset
from latentae.training.randomness import StepRandomness
from latentae.training.trainer import Trainer
from tests.data.pictures import shows_green, write_cutout
from tests.training.conftest import draw_images
from tests.training.launch import flatten, log_lines, states_of
from tests.training.pretrained_models import fine_tuning, make_pretrained, write_pretrained

SHARED = ("freeze_encoder=true", "data.downscale=null", "data.random_flip=false", "log_every=1")
SHARED += ("optimizer.schedule=constant", "optimizer.warmup_steps=0", "max_steps=3")


@pytest.fixture
def place(tmp_path):
    return write_pretrained(make_pretrained(), tmp_path, "our folder")


def cached(place, tmp_path, name="latents", **options):
    """The override of a run that reads the latents of its images, which are encoded first."""
    usual = {"image_size": 32, "dtype": "float32"}
    encode_dataset(place, tmp_path / "images", tmp_path / name, **{**usual, **options})
    return f"data.latents={tmp_path / name}"


def weights(run):
    return load_file(run / "model/diffusion_pytorch_model.safetensors")


def gradients(trainer, batch, randomness):
    """The decoder's gradients of a step, and its losses."""
    result = trainer.networks.step(batch["images"], randomness, batch.get("latents"))
    autoencoder = trainer.networks.autoencoder
    found = {name: p.grad for name, p in autoencoder.named_parameters() if p.grad is not None}
    autoencoder.zero_grad()
    return found, result.losses


def assert_close(found, expected, error):
    """Compares gradients by the relative error of each tensor's."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Biases of attention's keys have no effect, so that their gradients are rounding.
        if not name.endswith("to_k.bias"):
            assert (found[name] - value).norm() <= error * value.norm() + 1e-6, name


@pytest.fixture
def teacher(tmp_path, place):
    """A section with a teacher that is not the starting model: at a distance of 0 gradients are rounding."""
    model = load_autoencoder(place)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "teacher")
    return f"loss.teacher={{model: {tmp_path}/teacher, output_weight: 0.5, features_weight: 0.2}}"


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 5e-2)])
def test_a_step_has_the_same_gradients(tiny, tmp_path, place, teacher, dtype, error):
    """As without a cache, up to the dtype of the latents, and with the teacher decoding the same latents."""
    steps, calls = [], []
    for words in ((), (cached(place, tmp_path, dtype=dtype),)):
        l2 = "loss.reconstruction.type=l2"  # its gradient has no jumps
        trainer = Trainer(fine_tuning(tiny, place, *SHARED, teacher, l2, *words), rehearsal=True)
        trainer.networks.autoencoder.encoder.register_forward_hook(lambda *_: calls.append(1))
        steps.append(gradients(trainer, next(trainer.batches()), trainer.randomness()))
        assert len(calls) == 1  # of the first trainer
    (usual, losses), (found, others) = steps
    assert_close(found, usual, error)
    for name, value in losses.items():
        assert others[name].item() == pytest.approx(value.item(), rel=error), name


def test_two_ranks_equal_one(tiny, tmp_path, place):
    """Each rank has its part of the global batch, its latents, and the posterior's noise for it."""
    words = (*SHARED, cached(place, tmp_path, flips=True), "data.random_flip=true", "batch_size=4")
    trainer = Trainer(fine_tuning(tiny, place, *words), rehearsal=True)
    whole, _ = gradients(trainer, next(trainer.batches()), StepRandomness(0, 0))
    parts = []
    for rank in range(2):
        options = {"batch_size": 2, "rank": rank, "world_size": 2, "seed": trainer.config.seed}
        batch = next(iter(training_loader(trainer.images.training, **options)))
        parts.append(gradients(trainer, batch, StepRandomness(0, 0, rank=rank, world_size=2))[0])
    assert_close({name: (value + parts[1][name]) / 2 for name, value in parts[0].items()}, whole, 1e-4)


def test_a_run_and_its_resume(tiny, tmp_path, place):
    """The run equals one without the cache; continued, with other workers, and a cache that moved, itself."""
    latents = cached(place, tmp_path, flips=True)
    words = (*SHARED, "data.random_flip=true", "gradient_accumulation_steps=2", "checkpoint_every=1", latents)
    whole = Trainer(fine_tuning(tiny, place, *words, f"output_dir={tmp_path}/whole", "data.num_workers=1"))
    assert "the encoder does not run" in whole.images.places
    whole.fit()
    Trainer(fine_tuning(tiny, place, *words, "max_steps=1")).fit()
    shutil.move(tmp_path / "latents", tmp_path / "elsewhere")
    moved = f"data.latents={tmp_path}/elsewhere"
    halves = Trainer(fine_tuning(tiny, place, *words[:-1], moved))
    assert halves.step == 1
    halves.fit()
    one, other = flatten(states_of(whole)), flatten(states_of(halves))
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "run")
    # The exported encoder is the model's own.
    before = load_autoencoder(place).state_dict()
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, before[name]) == name.startswith(("encoder", "quant_conv")), name
    # Latents of another posterior are other data; so is a run without them.
    for words in ((cached(place, tmp_path, "half", dtype="float16", flips=True),), ()):
        given = (*SHARED, "data.random_flip=true", "gradient_accumulation_steps=2", "checkpoint_every=1")
        with pytest.raises(ConfigError, match=r"(?s)the latents are others.*data\.latents"):
            Trainer(fine_tuning(tiny, place, *given, "max_steps=4", *words))


def test_a_vq_model(tiny, tmp_path):
    """With its adversarial loss off: the codes of cached latents are those of the images."""
    place = write_pretrained(make_pretrained(VQVAE), tmp_path, "our folder")
    lines = []
    for run, words in (("a", ()), ("b", (cached(place, tmp_path),))):
        Trainer(fine_tuning(tiny, place, *SHARED, *words, f"output_dir={tmp_path}/{run}", cls=VQVAE)).fit()
        lines.append([line["reconstruction"] for line in log_lines(tmp_path / run)])
    assert lines[1] == pytest.approx(lines[0], rel=1e-4)


def test_caches_that_do_not_belong_are_refused(tiny, tmp_path, place):
    latents = cached(place, tmp_path)
    other = make_pretrained(KLVAE)
    with torch.no_grad():
        other.encoder.conv_in.weight += 0.1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the latents in .* are of another encoder"):
        Trainer(fine_tuning(tiny, tmp_path / "other", *SHARED, latents))
    with pytest.raises(
        ConfigError, match=r"`data.latents` is .*cannot be used: it has no latents of mirrored"
    ):
        Trainer(fine_tuning(tiny, place, *SHARED, latents, "data.random_flip=true"))
    draw_images(tmp_path / "images", count=12)
    with pytest.raises(ConfigError, match=r"it has no latents of 2 of the \d+ training images"):
        Trainer(fine_tuning(tiny, place, *SHARED, latents))
    shutil.rmtree(tmp_path / "latents")
    with pytest.raises(ConfigError, match="there are no latents in"):
        Trainer(fine_tuning(tiny, place, *SHARED, latents))


def test_a_run_says_whether_its_cache_knows_of_transparency(tiny, tmp_path):
    (tmp_path / "images").rename(tmp_path / "rgb")
    for number in range(10):
        write_cutout(tmp_path / f"images/{number:02d}.npy", side=48, red=1 - number / 20)
    rgba = make_pretrained(in_channels=4, out_channels=4)
    place = write_pretrained(rgba, tmp_path, "our folder")
    words = (*SHARED, "model.in_channels=4", "data.alpha=true")
    as_bands, by_alpha = (cached(place, tmp_path, f"{alpha}", alpha=alpha) for alpha in (False, True))
    with pytest.raises(ConfigError, match=r"`data\.latents` is .*resized as bands, and data\.alpha is true"):
        Trainer(fine_tuning(tiny, place, *words, as_bands))
    training = Trainer(fine_tuning(tiny, place, *words, by_alpha)).images.training
    assert not any(shows_green(training[0, index]["images"]) for index in range(len(training)))
