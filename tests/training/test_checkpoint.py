import json
from pathlib import Path

import pytest

from latentae.training.checkpoint import load_checkpoint, needing_disk, save_checkpoint
from latentae.training.folder import RunError, RunFolder


def progress(step):
    return {"step": step, "seconds": 1.5, "global_batch": 4}


def write_weights(folder):
    Path(folder, "weights").write_text("whole")


def test_round_trip_and_the_newest_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        save_checkpoint(folder, write_weights, progress(step), keep=2)
    assert [path.name for path in folder.all_checkpoints()] == ["step_000002", "step_000003"]
    loaded = []
    assert load_checkpoint(folder.checkpoint(3), loaded.append, global_batch=4) == progress(3)
    assert loaded == [str(folder.checkpoint(3))]


def test_no_room(tmp_path):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, write_weights, progress(1), keep=2)

    def fill_up(path):
        Path(path, "weights").write_text("ha")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(RunError, match=r"cannot write .*step_000002.*(?s:.*)make room"):
        save_checkpoint(folder, fill_up, progress(2), keep=2)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_000001"]


def test_what_a_killed_run_left_aside_is_in_nobodys_way(tmp_path):
    folder = RunFolder(tmp_path)
    left = folder.checkpoints / ".step_000001.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    save_checkpoint(folder, write_weights, progress(1), keep=1)
    assert sorted(path.name for path in folder.checkpoint(1).iterdir()) == ["progress.json", "weights"]


def test_damaged_and_mismatched(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save_checkpoint(folder, write_weights, progress(step), keep=2)
    with pytest.raises(ValueError, match="was 4 when this run was saved"):
        load_checkpoint(folder.checkpoint(2), lambda _: None, global_batch=8)
    (folder.checkpoint(2) / "progress.json").write_text(json.dumps(progress(2))[:9])
    with pytest.raises(ValueError, match=r"step_000002 cannot be read(?s:.*)continue from step_000001"):
        load_checkpoint(folder.checkpoint(2), lambda _: None, global_batch=4)


def test_other_errors_keep_their_kind(tmp_path):
    with pytest.raises(TypeError), needing_disk(tmp_path / "folder"):
        raise TypeError("a mistake of ours is not a full disk")
    with pytest.raises(RuntimeError, match="out of memory"), needing_disk(tmp_path / "folder"):
        raise RuntimeError("CUDA out of memory")


def test_nobody_is_told_to_remove_another_runs_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, write_weights, progress(1), keep=2)

    def another_model(path):
        raise RuntimeError("size mismatch")

    with pytest.raises(ValueError, match="remove it to start from the beginning"):
        load_checkpoint(folder.checkpoint(1), another_model, global_batch=4)
    with pytest.raises(ValueError, match="it belongs to another run"):
        load_checkpoint(folder.checkpoint(1), another_model, global_batch=4, own=False)
