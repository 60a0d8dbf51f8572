"""Runs whose data change: a run's own outputs among them, and images that come later."""

import json
from pathlib import Path

import pytest

from latentae.config import ConfigError
from latentae.training.dry_run import dry_run
from latentae.training.images import held_out_before
from latentae.training.run_folder import RunFolder
from latentae.training.trainer import Trainer
from tests.data.pictures import write_png
from tests.training.conftest import draw_images


def names(dataset) -> set[str]:
    return {dataset.name(index) for index in range(len(dataset))}


def test_a_run_in_its_own_data_never_trains_on_its_pictures(tiny, tmp_path, capsys):
    images = tmp_path / "images"
    within = [f"output_dir={images}/run", "max_steps=1", "sample_every=1", "checkpoint_every=1"]
    before = names(Trainer(tiny(*within)).images.training)
    Trainer(tiny(*within)).fit()
    assert list((images / "run/samples").glob("*.png"))
    resumed = Trainer(tiny(*within, "max_steps=2"))
    assert names(resumed.images.training) == before
    resumed.fit()
    assert "left out 1 folder(s) with the output of latentae: run" in capsys.readouterr().out


def test_the_picture_of_a_dry_run_lies_outside_of_the_data(tiny, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    dry_run(tiny(f"output_dir={tmp_path}/images/run"))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["run-dry-run.png"]
    assert not list((tmp_path / "images").glob("*dry-run*"))


def test_a_run_that_goes_on_with_more_images_keeps_those_held_out(tiny, tmp_path):
    changes = ["max_steps=1", "sample_every=1", "checkpoint_every=1", "data.holdout=1.0e-6"]
    first = Trainer(tiny(*changes))
    measured = names(first.images.validation)
    assert len(measured) == 1
    first.fit()
    draw_images(tmp_path / "more", 40)
    for path in (tmp_path / "more").iterdir():
        path.rename(tmp_path / f"images/new{path.name}")
    resumed = Trainer(tiny(*changes))
    assert names(resumed.images.validation) == measured
    assert len(names(resumed.images.training)) == 49
    branch = f"resume={tmp_path}/run/checkpoints/step_000001"
    branched = Trainer(tiny(*changes, branch, f"output_dir={tmp_path}/branch"))
    assert names(branched.images.validation) == measured
    record = json.loads((tmp_path / "branch/held_out.json").read_text())
    assert record["images"] == dict.fromkeys(measured, True)


def test_runs_without_a_record_and_with_a_damaged_one(tmp_path):
    folder = RunFolder(tmp_path)
    assert held_out_before(folder, "auto") is None
    folder.checkpoint(3).mkdir(parents=True)
    record = held_out_before(folder, "auto")
    assert record is not None
    assert record.by_name
    folder.held_out.write_text("{")
    with pytest.raises(ConfigError, match=r"held_out\.json, which says what the run has kept out"):
        held_out_before(folder, "auto")


def test_the_start_says_what_is_read(tiny, tmp_path, capsys):
    for name in ("train2017/a", "train2017/b", "val2017/c"):
        write_png(tmp_path / f"coco/{name}.png", 100, 48)
    Path(tmp_path / "coco/train2017/b.svg").touch()
    Trainer(tiny(f"data.name={tmp_path}/coco", "max_steps=1")).fit()
    said = capsys.readouterr().out
    assert (
        f"trained on: the split 'train': {tmp_path}/coco/train2017: 2 files (2 .png); left out 1 file" in said
    )
    assert f"measured on: the split 'validation': {tmp_path}/coco/val2017: 1 file (1 .png)" in said
