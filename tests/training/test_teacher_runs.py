"""Whole runs with a teacher: resumed, in two ranks, in bfloat16, and with teachers that do not fit."""

import json

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from safetensors.torch import load_file

from latentae import KLVAE, build, load_autoencoder
from latentae.config import ConfigError, load_config
from latentae.training.dry_run import measure_memory, module_bytes
from latentae.training.trainer import Trainer
from tests.processes import launch
from tests.training.launch import flatten, log_lines, states_of
from tests.training.pretrained_models import VQGAN, fine_tuning, make_pretrained, write_pretrained

BOTH = "loss.teacher={output_weight: 0.5, features_weight: 0.2}"
FROZEN = ("freeze_encoder=true", "optimizer.schedule=constant", "log_every=1")


@pytest.fixture
def place(tmp_path):
    return write_pretrained(make_pretrained(KLVAE), tmp_path, "diffusers folder")


def write_teacher(place, folder):
    """A model of the same encoder, whose decoder has other weights."""
    model = load_autoencoder(place)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def wide(monkeypatch, place):
    """Lets every run have a teacher with a wider decoder than a config can describe."""

    def open_teacher(*_):
        model = load_autoencoder(place)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            up = ("UpDecoderBlock2D",) * 2
            model.decoder = Decoder(4, up_block_types=up, block_out_channels=(16, 24), norm_num_groups=8)
        return model.eval()

    monkeypatch.setattr(build, "open_teacher", open_teacher)


@pytest.mark.usefixtures("wide")
def test_resumed_equals_uninterrupted(tiny, tmp_path, place):
    states = {}
    for run, steps in (("whole", [4]), ("halves", [2, 4])):
        for count in steps:
            words = (f"output_dir={tmp_path}/{run}", f"max_steps={count}", "gradient_accumulation_steps=2")
            trainer = Trainer(
                fine_tuning(tiny, place, *FROZEN, BOTH, "loss.latent_noise={scale: 0.2}", *words)
            )
            trainer.fit()
        states[run] = flatten(states_of(trainer))
    projections = [name for name in states["whole"] if "matched.projections" in name]
    assert len(projections) == 4
    for name, value in states["whole"].items():
        other = states["halves"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    whole, halves = log_lines(tmp_path / "whole"), log_lines(tmp_path / "halves")
    assert whole == halves
    assert all(line["teacher_output"] > 0 and line["teacher_features"] > 0 for line in whole)
    # Neither the teacher nor the projections are exported; a checkpoint has the projections alone.
    exported = load_file(tmp_path / "whole/model/diffusion_pytorch_model.safetensors")
    assert exported.keys() == load_autoencoder(place).state_dict().keys()
    saved = load_file(tmp_path / "whole/checkpoints/step_000004/model.safetensors")
    own = {f"autoencoder.{name}" for name in exported}
    assert {name.rsplit(".", 1)[0] for name in saved.keys() - own} == {
        "matched.projections.0",
        "matched.projections.1",
    }


def test_two_ranks_equal_one(tiny, tmp_path):
    # Two channels a group: a group of one takes away what the bias before it adds, and no gradient is left.
    place = write_pretrained(make_pretrained(KLVAE, norm_num_groups=4), tmp_path, "diffusers folder")
    teacher = write_teacher(place, tmp_path / "teacher")
    section = f"loss.teacher={{model: {teacher}, output_weight: 0.5, features_weight: 0.2}}"
    # Adam divides by the gradient's size, which turns the rounding of a tiny one into a whole step.
    shared = [*FROZEN, section, "max_steps=3", "gradient_accumulation_steps=2", "optimizer.epsilon=1.0e-3"]
    kl = ["model.class=KLVAE", "loss.kl.weight=0.01", "loss.adversarial=null", "discriminator=null"]
    Trainer(fine_tuning(tiny, place, *shared, "batch_size=4", f"output_dir={tmp_path}/one")).fit()
    given = [f"model.pretrained={place}", *kl, *shared, "batch_size=2", f"output_dir={tmp_path}/two"]
    launch("scripts/train_kl_vae.py", 2, "--config", str(tiny.file), *given, HF_HUB_OFFLINE="1")
    one, two = (
        load_file(tmp_path / run / "model/diffusion_pytorch_model.safetensors") for run in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for line, other in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        assert other == pytest.approx(line, rel=1e-3, abs=1e-5)
    line = json.loads((tmp_path / "one/metrics.jsonl").read_text().splitlines()[0])
    assert line["teacher_output"] > 0.01


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_starting_weights_teach_by_default(tiny, tmp_path, place, precision):
    """At the first step both are equal but for rounding, in the run's precision too; then they part."""
    words = (f"mixed_precision={precision}", "max_steps=3", "performance=off", "optimizer.warmup_steps=0")
    trainer = Trainer(fine_tuning(tiny, place, *FROZEN, BOTH, *words))
    assert any("decodes the same latents" in line for line in trainer.networks.describe())
    assert trainer.networks.step.teacher.model.encoder is None
    before = {name: value.clone() for name, value in trainer.networks.step.teacher.model.state_dict().items()}
    trainer.fit()
    first, *_, last = log_lines(tmp_path / "run")
    rounding = {"no": 1e-5, "bf16": 1e-3}[precision]
    assert first["teacher_output"] < rounding
    assert first["teacher_features"] < rounding**2
    assert last["teacher_output"] > 2 * rounding
    assert last["teacher_features"] > 2 * rounding**2
    for name, value in trainer.networks.step.teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_with_a_discriminator_and_codes(tiny, tmp_path):
    place = write_pretrained(make_pretrained(VQGAN), tmp_path, "diffusers folder")
    teacher = write_teacher(place, tmp_path / "teacher")
    section = f"loss.teacher={{model: {teacher}, features_weight: 0.2, levels: [1]}}"
    Trainer(fine_tuning(tiny, place, *FROZEN, section, cls=VQGAN)).fit()
    last = log_lines(tmp_path / "run")[-1]
    assert {"teacher_output", "teacher_features", "generator", "adaptive_factor"} <= last.keys()


def test_an_encoder_that_learns_has_a_teacher_of_other_latents(tiny, tmp_path):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    model = make_pretrained(KLVAE, block_out_channels=(8, 8, 8), latent_channels=6, **blocks)
    place = write_pretrained(model, tmp_path, "our folder")
    words = ["model.class=KLVAE", "loss.kl.weight=0.01", "loss.adversarial=null", "discriminator=null"]
    words += [f"loss.teacher.model={place}", "max_steps=2"]
    trainer = Trainer(load_config("kl_vae", ["--config", str(tiny.file), *words]))
    assert any("encodes and decodes for itself" in line for line in trainer.networks.describe())
    trainer.fit()
    assert log_lines(tmp_path / "run")[-1]["teacher_output"] > 0.1


def test_teachers_that_do_not_fit(tiny, tmp_path, place):
    def refusal(model):
        folder = tmp_path / "other"
        model.save_pretrained(folder)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            Trainer(fine_tuning(tiny, place, *FROZEN, f"loss.teacher.model={folder}"))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    model = load_autoencoder(place)
    with torch.no_grad():
        model.encoder.conv_in.bias[0] += 1e-3
    assert "is a teacher of other latents: its encoder has other weights" in refusal(model)
    more = refusal(make_pretrained(KLVAE, latent_channels=6))
    assert "teacher of other latents: it has 6 latent channels, and the run has 4" in more
    grey = make_pretrained(KLVAE, in_channels=1, out_channels=1)
    assert "images of 1 channels, and the run of 3" in refusal(grey)
    with pytest.raises(ValueError, match=r"`loss\.teacher\.model`, nowhere, which cannot be used"):
        Trainer(fine_tuning(tiny, place, *FROZEN, "loss.teacher.model=nowhere"))


def test_a_resume_needs_the_same_teacher(tiny, tmp_path, place):
    teacher = write_teacher(place, tmp_path / "teacher")
    words = (*FROZEN, f"loss.teacher.model={teacher}")
    Trainer(fine_tuning(tiny, place, *words, "max_steps=1")).fit()
    model = load_autoencoder(teacher)
    with torch.no_grad():
        model.decoder.conv_in.bias[0] += 1e-3
    model.save_pretrained(teacher)
    with pytest.raises(ValueError, match="other weights than when this run was saved"):
        Trainer(fine_tuning(tiny, place, *words, "max_steps=2"))
    with pytest.raises(ConfigError, match=r"loss\.teacher"):
        Trainer(fine_tuning(tiny, place, *FROZEN, "max_steps=2"))


def test_a_rehearsal_counts_the_teacher_s_memory(tiny, place):
    def memory(*words):
        trainer = Trainer(fine_tuning(tiny, place, *FROZEN, *words), rehearsal=True)
        return measure_memory(trainer, trainer.batches()).losses, trainer.networks.step.teacher

    (without, _), (with_teacher, teacher) = memory(), memory("loss.teacher={}")
    assert with_teacher - without == module_bytes(teacher.model)
