import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from latentae.training.folder import RunError, RunFolder
from latentae.training.recorder import Recorder


def recorder(tmp_path, tracked, enabled=True):
    return Recorder(
        RunFolder(tmp_path),
        step=4,
        max_steps=8,
        images_per_step=3,
        track=lambda values, histograms, step: tracked.append((step, values, histograms)),
        enabled=enabled,
    )


def test_a_line_a_call(tmp_path):
    tracked = []
    log = recorder(tmp_path, tracked)
    log.advance()
    log.write(5, {"loss": 0.123456789})
    log.write(6, {"loss": 2.0, "codebook_usage": 0.5})
    log.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["loss"]) == (5, 0.123457)
    assert first["images_per_second"] > 0
    assert second["codebook_usage"] == 0.5
    assert [step for step, _, _ in tracked] == [5, 6]
    assert "step" not in tracked[0][1]


def test_only_one_rank_writes(tmp_path, capsys):
    tracked = []
    log = recorder(tmp_path, tracked, enabled=False)
    log.advance()
    log.write(5, {"loss": 1.0})
    log.say("nothing")
    log.close()
    assert tracked == []
    assert not (tmp_path / "metrics.jsonl").exists()
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_what_is_no_training_does_not_slow_it(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    tracked = []
    log = recorder(tmp_path, tracked)
    clock[0] += 2.0
    with log.aside():
        clock[0] += 50.0
    log.write(6, {})
    assert tracked[0][1]["images_per_second"] == pytest.approx(2 * 3 / 2.0)


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl .*checkpoints are untouched"):
        recorder(tmp_path, []).write(5, {})


def test_lists_are_for_the_file_and_histograms_for_the_trackers(tmp_path):
    tracked = []
    log = recorder(tmp_path, tracked)
    histogram = torch.tensor([0.0, 2.0])
    log.write(5, {"loss": 1.0, "deciles": [0.123456789, 0.5]}, {"codebook": histogram})
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["deciles"] == [0.123457, 0.5]
    assert "codebook" not in line
    ((step, numbers, histograms),) = tracked
    assert step == 5
    assert set(numbers) == {"images_per_second", "loss"}
    assert histograms == {"codebook": histogram}


def test_standard_output_on_a_full_disk(tmp_path, monkeypatch):
    log = recorder(tmp_path, [])
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        for write in (lambda: log.say("a sentence"), lambda: log.write(5, {"loss": 1.0})):
            with pytest.raises(RunError, match=r"cannot write standard output .*same command"):
                write()
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
