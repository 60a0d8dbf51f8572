import errno
import json
import math
import os
from pathlib import Path

import pytest

from latentae import distributed
from latentae.latents import calibration
from latentae.training import checkpoint
from latentae.training.checkpoint import (
    BestCheckpoint,
    choose_checkpoint,
    find_best,
    find_damage,
    load_checkpoint,
    mark_best,
    needing_disk,
    save_checkpoint,
    write_manifest,
)
from latentae.training.run_folder import RunError, RunFolder
from latentae.training.trainer import Trainer
from tests.training.launch import in_two_ranks


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
    assert sorted(path.name for path in folder.checkpoint(1).iterdir()) == [
        "manifest.json",
        "progress.json",
        "weights",
    ]


def test_another_global_batch(tmp_path):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, write_weights, progress(2), keep=2)
    with pytest.raises(ValueError, match="was 4 when this run was saved"):
        load_checkpoint(folder.checkpoint(2), lambda _: None, global_batch=8)


def truncated(checkpoint):
    os.truncate(checkpoint / "weights", 2)
    return "weights has 2 bytes of 5"


def with_a_flipped_bit(checkpoint):
    (checkpoint / "weights").write_text("wholf")
    return "weights has changed since it was written"


def without_a_file(checkpoint):
    (checkpoint / "weights").unlink()
    return "weights is missing"


@pytest.mark.parametrize("damage", [truncated, with_a_flipped_bit, without_a_file])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_taken(tmp_path, damage):
    folder, said = RunFolder(tmp_path), []
    for step in (1, 2, 3):
        save_checkpoint(folder, write_weights, progress(step), keep=3)
    newest = folder.checkpoint(3)
    with_reason = damage(newest)
    assert choose_checkpoint(folder, "auto", said.append) == folder.checkpoint(2)
    assert said == [
        f"{newest} is damaged ({with_reason}): renamed to step_000003.damaged, continuing from step_000002"
    ]
    assert choose_checkpoint(folder, "auto", said.append) == folder.checkpoint(2)
    assert len(said) == 1
    save_checkpoint(folder, write_weights, progress(3), keep=2)
    assert choose_checkpoint(folder, "auto", said.append) == newest
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step_000002", "step_000003"]


def test_a_damaged_one_that_was_asked_for_is_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save_checkpoint(folder, write_weights, progress(step), keep=2)
    truncated(folder.checkpoint(2))
    with pytest.raises(ValueError, match=r"step_000002, a damaged checkpoint: weights has 2 bytes of 5"):
        choose_checkpoint(folder, str(folder.checkpoint(2)), print)
    assert folder.checkpoint(2).is_dir()


def test_nothing_is_begun_anew_where_all_are_damaged(tmp_path):
    folder, said = RunFolder(tmp_path), []
    assert choose_checkpoint(folder, "auto", said.append) is None
    for step in (1, 2):
        save_checkpoint(folder, write_weights, progress(step), keep=2)
        truncated(folder.checkpoint(step))
    with pytest.raises(ValueError, match=r"are damaged; remove them to start from the beginning"):
        choose_checkpoint(folder, "auto", said.append)
    assert [line.split(" is damaged")[0] for line in said] == [
        str(folder.checkpoint(step)) for step in (2, 1)
    ]
    assert len(folder.all_checkpoints()) == 2


def test_the_best_one_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step, psnr in ((1, 20.0), (2, 24.0), (3, 23.0), (4, 22.0), (5, None)):
        validation = {} if psnr is None else {"validation_psnr": psnr}
        state = {**progress(step), "validation": validation}
        save_checkpoint(folder, write_weights, state, keep=1, best_metric="validation_psnr")
    assert [path.name for path in folder.all_checkpoints()] == ["step_000002", "step_000005"]
    assert json.loads((folder.checkpoints / "best.json").read_text())["step"] == 2
    save_checkpoint(folder, write_weights, progress(6), keep=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_000006"]


def test_a_write_that_fails_halfway(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, write_weights, progress(1), keep=1)

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)  # where a full disk often shows first
    with pytest.raises(RunError, match=r"cannot write .*step_000002: No space left on device \(\d+ MB are"):
        save_checkpoint(folder, write_weights, progress(2), keep=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_000001"]
    assert choose_checkpoint(folder, "auto", print) == folder.checkpoint(1)


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

    with pytest.raises(ValueError, match=r"(?s)size mismatch.*another version of latentae"):
        load_checkpoint(folder.checkpoint(1), another_model, global_batch=4)
    with pytest.raises(ValueError, match="it belongs to another run"):
        load_checkpoint(folder.checkpoint(1), another_model, global_batch=4, own=False)


def save_each(folder):
    """A state of several ranks; only the second one finds no room for that of step 2."""
    name = f"rank_{distributed.rank()}"
    if distributed.rank() == 1 and ".step_000002" in folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    Path(folder, name).write_text(name)


def save_fail_and_choose(root):
    folder, said = RunFolder(root / "run"), []
    save_checkpoint(folder, save_each, progress(1), keep=3)
    try:
        save_checkpoint(folder, save_each, progress(2), keep=3)
    except RunError as error:
        said.append(str(error).splitlines()[0])
    save_checkpoint(folder, save_each, progress(3), keep=3)
    if distributed.is_main():
        os.truncate(folder.checkpoint(3) / "rank_1", 2)
    distributed.barrier()
    path = choose_checkpoint(folder, "auto", said.append)
    try:
        choose_checkpoint(folder, str(folder.checkpoints / "step_000003.damaged"), said.append)
    except ValueError:
        said.append("refused")
    return [path.name, sorted(file.name for file in path.iterdir()), *said]


def test_ranks_agree(tmp_path):
    first, second = in_two_ranks(save_fail_and_choose, tmp_path)
    files = ["manifest.json", "progress.json", "rank_0", "rank_1"]
    assert first[:2] == second[:2] == ["step_000001", files]
    assert "process 1 of 2 could not" in first[2]
    assert "step_000002: No space left on device" in second[2]
    assert "step_000003 is damaged (rank_1 has 2 bytes of 6)" in first[3]
    assert (first[4:], second[3:]) == (["refused"], ["refused"])


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "progress").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_whole(listed):
    files = json.loads((listed / "manifest.json").read_text())["files"]
    assert files["progress"] == {
        "bytes": 2,
        # of the two bytes {}
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert files["weights"]["bytes"] == 2048
    assert sorted(files) == ["progress", "weights"]
    assert find_damage(listed) is None


def test_a_truncated_file(listed):
    os.truncate(listed / "weights", 2000)
    assert find_damage(listed) == "weights has 2000 bytes of 2048"


def test_a_flipped_bit(listed):
    content = bytearray((listed / "weights").read_bytes())
    content[1000] ^= 4
    (listed / "weights").write_bytes(content)
    assert find_damage(listed) == "weights has changed since it was written"


def test_a_missing_file(listed):
    (listed / "weights").unlink()
    assert find_damage(listed) == "weights is missing"


@pytest.mark.parametrize(
    "content", [b"", b'{"files": {"weig', b"[]", b'{"files": {"weights": 3}}', b"\xff\xfe"]
)
def test_a_damaged_list(listed, content):
    (listed / "manifest.json").write_bytes(content)
    assert find_damage(listed) == "manifest.json is no list of files"


def test_no_list(listed):
    (listed / "manifest.json").unlink()
    assert find_damage(listed) == "manifest.json cannot be read: No such file or directory"


def test_a_disk_that_lies(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("as written")
    monkeypatch.setattr(checkpoint, "_drop_cached", lambda path: path.write_text("something else"))
    with pytest.raises(OSError, match="does not give back what was written to weights"):
        write_manifest(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.fixture
def measured(tmp_path):
    """Checkpoints 2 to 10: psnr 20, 22, not measured, 22, infinite; lpips falls."""
    folder = RunFolder(tmp_path)
    values = {2: 20.0, 4: 22.0, 6: None, 8: 22.0, 10: math.inf}
    for step, psnr in values.items():
        folder.checkpoint(step).mkdir(parents=True)
        measured = {} if psnr is None else {"validation_psnr": psnr, "validation_lpips": 1 / step}
        (folder.checkpoint(step) / "progress.json").write_text(json.dumps({"validation": measured}))
    return folder


def test_higher_or_lower_is_better(measured):
    assert find_best(measured, "validation_psnr") == BestCheckpoint(4, "validation_psnr", 22.0)
    assert find_best(measured, "validation_lpips") == BestCheckpoint(10, "validation_lpips", 0.1)
    assert find_best(measured, "validation_ssim") is None


def test_it_is_marked(measured):
    assert mark_best(measured, "validation_psnr") == measured.checkpoint(4)
    assert json.loads((measured.checkpoints / "best.json").read_text()) == {
        "step": 4,
        "metric": "validation_psnr",
        "value": 22.0,
    }
    assert len(measured.all_checkpoints()) == 5
    assert mark_best(measured, None) is None
    assert not (measured.checkpoints / "best.json").exists()


def test_a_damaged_one_is_no_candidate(measured):
    (measured.checkpoint(4) / "progress.json").write_text("{")
    assert find_best(measured, "validation_psnr").step == 8
    (measured.checkpoint(8) / "progress.json").unlink()
    assert find_best(measured, "validation_psnr").step == 2


def test_a_model_can_be_made_of_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST_VIEWS", 16)
    constant = "optimizer.schedule=constant"
    Trainer(tiny(constant, "max_steps=4", "checkpoint_every=2")).fit()
    chosen = f"resume={RunFolder(tmp_path / 'run').checkpoint(2)}"
    Trainer(tiny(constant, "max_steps=2", chosen, f"output_dir={tmp_path}/chosen")).fit()
    Trainer(tiny(constant, "max_steps=2", f"output_dir={tmp_path}/short")).fit()
    chosen, short = (
        (tmp_path / run / "model/diffusion_pytorch_model.safetensors").read_bytes()
        for run in ("chosen", "short")
    )
    assert chosen == short
