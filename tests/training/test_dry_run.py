import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from latentae.config import load_config
from latentae.report.grids import picture_grid
from latentae.training.dry_run import (
    MemoryUse,
    Stage,
    WorkingSpace,
    _costliest_step,
    _in_units,
    _save_picture,
    dry_run,
    measure_memory,
    measure_time,
    module_bytes,
    tensor_bytes,
)
from latentae.training.log import Meter
from latentae.training.trainer import Trainer


def row(report, name):
    """One row of a report, unwrapped."""
    lines = report.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"  {name} "))
    rest = lines[start + 1 :]
    count = next((number for number, line in enumerate(rest) if not line.startswith(" " * 14)), len(rest))
    return " ".join([lines[start][14:], *(line.strip() for line in rest[:count])])


def test_what_a_run_needs(tiny, tmp_path):
    config = tiny("gradient_accumulation_steps=2", "data.num_workers=1", "keep_checkpoints=3")
    report = dry_run(config)
    assert not (tmp_path / "run").exists()
    assert "VQGAN" in report.splitlines()[0]
    assert row(report, "latents").startswith(
        "3x32x32 -> 4x16x16 (f2), 3:1 in numbers; 256 tokens of 16 codes"
    )
    assert row(report, "latents").endswith("128 bytes, 24:1 against 8-bit pixels")  # of 32 x 32 x 3 bytes
    assert row(report, "data").startswith("9 training images, 1 validation images, of ")
    assert row(report, "steps") == (
        "6 steps of 4 images (2 x 1 x 2: batch, processes, accumulation); 2.2 steps an epoch, 2.7 epochs"
    )
    assert "encoder" in row(report, "parameters")
    assert "; discriminator " in row(report, "parameters")
    assert row(report, "memory").startswith("about ")
    assert "from step 2" in row(report, "time")

    path = tmp_path / "run-dry-run.png"
    assert str(path) in report
    batch = next(Trainer(config, rehearsal=True).batches())
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), picture_grid(batch["images"][None]))


def test_a_kl_vae(tiny):
    changes = ["model.class=KLVAE", "loss.adversarial=null", "discriminator=null", "loss.kl={weight: 0.01}"]
    report = dry_run(load_config("kl_vae", ["--config", str(tiny.file), *changes]))
    assert row(report, "latents") == "3x32x32 -> 4x16x16 (f2), 3:1 in numbers"
    assert "discriminator" not in row(report, "parameters")


def test_a_checkpoint_is_as_large_as_was_said(tiny, tmp_path):
    config = tiny("model.block_out_channels=[32, 64]", "loss.adversarial.start_step=1")
    said = row(dry_run(config), "checkpoint")
    trainer = Trainer(config)
    trainer.optimizer_step(trainer.batches(), Meter())
    trainer._save_checkpoint()
    files = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step_000001").iterdir())
    number, unit = said.split(",")[0].split()
    assert unit == "MB"
    # the rest: names and file entries of hundreds of tensors, the state of random generators
    assert 0.97 < float(number) * 1e6 / files < 1


def test_a_run_that_is_there_is_left_as_it_is(tiny, tmp_path):
    trainer = Trainer(tiny())
    trainer.optimizer_step(trainer.batches(), Meter())
    trainer._save_checkpoint()
    (tmp_path / "run/checkpoints/.step_000009.tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    report = dry_run(tiny())
    assert row(report, "steps").endswith("would continue after step 1")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_bad_data_is_answered_as_in_a_run(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        dry_run(tiny(f"data.name={tmp_path}/empty"))
    (tmp_path / "images/004.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 image cannot be read, and data\.max_broken is 0"):
        dry_run(tiny("data.max_broken=0", "data.check_images=0", "data.holdout=0.3"))
    assert not list(tmp_path.glob("run*"))


def test_broken_images_are_told(tiny, tmp_path):
    (tmp_path / "images/004.png").write_bytes(b"")
    assert "004.png" in dry_run(tiny("data.check_images=0", "batch_size=8"))


def test_many_images_fill_rows_of_eight(tmp_path):
    images = torch.zeros(70, 1, 4, 6)
    path = _save_picture(images, tmp_path / "run", tmp_path / "photos")
    with Image.open(path) as picture:
        assert picture.size == (8 * (6 + 4), 8 * (4 + 4))
    with Image.open(_save_picture(images[:10], tmp_path / "run", tmp_path / "photos")) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[:2] == (2 * (4 + 4), 8 * (6 + 4))
    assert (pixels[10, 2 * 10 + 2 :] == 255).all()  # six places are empty


def test_a_picture_lies_in_the_working_folder_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = _save_picture(torch.zeros(1, 1, 4, 4), tmp_path / "not/there/run", tmp_path / "photos")
    assert (path.is_absolute(), os.listdir(tmp_path)) == (False, ["run-dry-run.png"])  # noqa: PTH208


@pytest.mark.parametrize(
    ("number", "text"),
    [(20, "20"), (4096, "4.1 k"), (999_900, "1 M"), (83_653_863, "83.7 M"), (2.5e9, "2,500 M")],
)
def test_three_digits(number, text):
    assert _in_units(number, ("", " k", " M")) == text


@pytest.fixture
def rehearsing(tiny):
    def build(*overrides):
        return Trainer(tiny(*overrides), rehearsal=True)

    return build


def test_stages_and_memory(rehearsing):
    """The tiny run has the discriminator learn from step 1 and the autoencoder from it from step 2."""
    trainer = rehearsing()
    batches = trainer.batches()
    use = measure_memory(trainer, batches)
    parameters = [
        sum(parameter.numel() for parameter in learner.module.parameters())
        for learner in trainer.networks.learners
    ]
    assert use.gradients == 4 * sum(parameters)
    assert use.optimizer >= 8 * sum(parameters)
    assert use.optimizer < 8 * sum(parameters) * 1.1  # and a counter for each tensor
    assert 4 * parameters[0] <= use.average < use.weights < 4 * sum(parameters) + 1000
    assert use.losses == 2 * 4 * (
        2_470_848 + 6
    )  # LPIPS on AlexNet, its shift and scale; once to train, once to measure
    first_layer = 2 * 8 * 32 * 32 * 4  # what two images are after the encoder's first convolution
    assert 20 * first_layer < use.activations < 200 * first_layer

    stages = measure_time(trainer, batches)
    assert [(stage.first, stage.last) for stage in stages] == [(0, 1), (1, 2), (2, 6)]
    assert all(0 < stage.seconds < 10 for stage in stages)


def test_more_images_need_more_activations(rehearsing):
    uses = []
    for size in (2, 4):
        trainer = rehearsing(f"batch_size={size}")
        uses.append(measure_memory(trainer, trainer.batches()))
    assert uses[1].weights == uses[0].weights
    assert 1.7 < uses[1].activations / uses[0].activations < 2.05


def test_memory_is_for_the_largest_of_several_sizes(rehearsing):
    several = ["data.resolutions=[[32, 32], [40, 48], [48, 32]]", "data.image_size=32"]
    uses = []
    for overrides in (several, ["data.image_size=[40, 48]"]):
        trainer = rehearsing(*overrides)
        uses.append(measure_memory(trainer, trainer.batches()).activations)
    assert uses[0] == uses[1]


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ([], 2),
        (["loss.adversarial.start_step=100"], 5),
        (["loss.adversarial.start_step=100", "loss.adversarial.discriminator_warmup_steps=96"], 4),
        (["discriminator.update_every=2"], 3),
        (["discriminator.r1={weight: 1.0, every: 3}"], 4),
    ],
)
def test_the_costliest_step(rehearsing, overrides, step):
    """Of steps 0 to 5: the discriminator learns from step 1 on, R1 is in its first update and each k-th."""
    assert _costliest_step(rehearsing(*overrides)) == step


def test_without_a_discriminator_all_steps_are_one_stage(tiny):
    changes = ["model.class=VQVAE", "loss.adversarial=null", "discriminator=null"]
    trainer = Trainer(load_config("vq_vae", ["--config", str(tiny.file), *changes]), rehearsal=True)
    assert _costliest_step(trainer) == 0
    (stage,) = measure_time(trainer, trainer.batches())
    assert stage == Stage(0, 6, stage.seconds)


KILOBYTE = torch.zeros(256)


def test_what_is_made_and_alive_at_once_by_hand():
    given = KILOBYTE.clone()
    with WorkingSpace() as space:
        first = given + 1
        second = first[10:] * 2  # 246 numbers
        given.mul_(2)
        del first
        third = torch.zeros(100)
    assert space.peak == 1024 + 246 * 4
    del second, third


def test_what_a_graph_keeps_is_alive_until_its_backward_pass():
    x = KILOBYTE.clone().requires_grad_()
    with WorkingSpace() as space:
        y = x.exp().sin()  # the graph keeps exp's result, y is the other one
        assert space._present == 2 * 1024
        total = y.sum()
        del y
        assert space._present == 1024 + 4
        total.backward()
        assert space._present == 1024 + 4  # of the gradient now
        space.leave_out(x.grad)
        assert space._present == 4
    assert space.peak >= 3 * 1024
    assert torch.allclose(x.grad, torch.cos(torch.tensor(1.0)).expand(256))  # exp(0) cos(exp(0))


def test_bytes_of_modules_and_states():
    net = nn.BatchNorm1d(8)  # two parameters and two averages of 8, and a counter
    shared = nn.Sequential(net, net)
    assert module_bytes(shared, net) == 4 * 8 * 4 + 8
    half = torch.zeros(3, dtype=torch.float16)
    assert tensor_bytes({"a": [half, (half,)], "b": {"c": torch.zeros(2)}, "d": 1.0}) == 6 + 6 + 8


def test_the_total_is_the_sum():
    use = MemoryUse(weights=1, gradients=2, optimizer=4, average=8, losses=16, activations=32)
    assert use.total == 63
