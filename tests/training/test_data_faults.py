"""Whole runs on streams, and on data that breaks."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from latentae.data import folder, tar
from latentae.data.decode import decode_image
from latentae.training.run_folder import RunError
from latentae.training.trainer import Trainer
from tests.data.pictures import write_tar
from tests.processes import launch
from tests.training.conftest import draw_images


def write_photograph_shards(tmp_path, counts: list[int]) -> str:
    """Tar files of so many of the pictures that `draw_images` draws; the pattern that stands for them."""
    draw_images(tmp_path / "drawn", sum(counts))
    drawn = sorted((tmp_path / "drawn").iterdir())
    for shard, count in enumerate(counts):
        own = [drawn.pop(0) for _ in range(count)]
        write_tar(tmp_path / f"shards/{shard}.tar", {path.name: path.read_bytes() for path in own})
    return f'data.name="{tmp_path}/shards/{{0..{len(counts) - 1}}}.tar"'


def test_a_run_on_a_stream_resumes_exactly(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_to_cache", lambda images, others: None)  # the user's own, with the trunk in it
    changes = [write_photograph_shards(tmp_path, [5, 3, 4]), "data.streaming=true", "data.num_workers=2"]
    changes += ["data.shuffle_block=3", "data.resolutions=[[32, 32], [32, 48]]", "data.holdout=0.3"]
    changes += ["gradient_accumulation_steps=2", "optimizer.schedule=constant"]
    Trainer(tiny(*changes, "max_steps=4", f"output_dir={tmp_path}/whole")).fit()
    for steps in (1, 4):
        Trainer(tiny(*changes, f"max_steps={steps}", f"output_dir={tmp_path}/parts")).fit()
    expected, found = (
        load_file(tmp_path / run / "checkpoints/step_000004/model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_broken_images_of_every_kind_are_skipped_and_named(tiny, tmp_path, capsys):
    images = tmp_path / "images"
    sound = (images / "000.png").read_bytes()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(images / "bomb.png")
    bomb = bytearray((images / "bomb.png").read_bytes())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2  # it says that it is 100,000 pixels wide and high
    broken = {"truncated.png": sound[: len(sound) // 2], "empty.jpg": b"", "bomb.png": bytes(bomb)}
    broken |= {"text.jpg": b"<html>moved</html>", "wrong.png": b"GIF89a" + bytes(40)}
    for name, data in broken.items():
        (images / name).write_bytes(data)
    summary = Trainer(tiny("data.check_images=0", "max_steps=20", "checkpoint_every=20")).fit()
    said = capsys.readouterr()
    assert all(name in said.out + said.err for name in broken)
    assert np.isfinite(summary["psnr"])


@pytest.mark.parametrize("validate_every", ["null", "1"])
def test_a_validation_image_that_breaks_later_is_named_and_not_measured(
    tiny, tmp_path, capsys, validate_every
):
    draw_images(tmp_path / "set/train", 4)
    draw_images(tmp_path / "set/val", 3)
    (tmp_path / "set/val/001.png").write_bytes(b"")
    changes = [f"data.name={tmp_path}/set", "data.check_images=0", "max_steps=1"]
    summary = Trainer(tiny(*changes, f"validate_every={validate_every}")).fit()
    said = capsys.readouterr()
    assert "001.png: it is empty" in said.out + said.err
    assert summary["images"] == 2


def test_a_worker_that_dies_is_reported_and_the_run_saved(tiny, monkeypatch):
    def deadly(path, *arguments, **options):
        if path.name == victim and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(path, *arguments, **options)

    main, victim = os.getpid(), ""
    monkeypatch.setattr(folder, "decode_image", deadly)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    trainer = Trainer(tiny("data.num_workers=1", "data.cache_megabytes=0", "max_steps=50"))
    victim = trainer.images.training.name(3)
    with pytest.raises(RunError, match=r"signal 9 (.|\n)*num_workers(.|\n)*the run is saved at"):
        trainer.fit()
    assert trainer.folder.all_checkpoints()


@pytest.mark.slow
def test_two_ranks_on_a_stream_of_unequal_shards_resume_exactly(tiny, tmp_path):
    changes = [write_photograph_shards(tmp_path, [7, 2, 4]), "data.streaming=true", "data.num_workers=1"]
    changes += ["data.shuffle_block=3", "data.holdout=0.2", "optimizer.schedule=constant"]
    for run, steps in (("whole", 6), ("parts", 2), ("parts", 6)):
        own = [f"max_steps={steps}", f"output_dir={tmp_path}/{run}"]
        launch("scripts/train_vqgan.py", 2, "--config", str(tiny.file), *changes, *own)
    expected, found = (
        load_file(tmp_path / run / "checkpoints/step_000006/model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
