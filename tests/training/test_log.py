import io
import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from latentae import distributed
from latentae.training.log import Meter, Pace, Progress, ProgressBar, ProgressLines, Recorder, create_progress
from latentae.training.run_folder import RunError, RunFolder


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
    with log.untimed():
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


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_the_pace_is_that_of_this_process(clock):
    pace = Pace(step=900)  # a resumed run
    assert pace.seconds_per_step() is None
    clock[0] += 20
    pace.mark(910)
    assert pace.seconds_per_step() == 2.0
    clock[0] += 40  # a checkpoint, say
    pace.mark(920)
    assert pace.seconds_per_step() == 3.0
    for step in range(930, 1130, 10):
        clock[0] += 10
        pace.mark(step)
    assert pace.seconds_per_step() == 1.0  # the slow start is forgotten


def test_lines_for_a_log_file(clock, capsys):
    lines = ProgressLines(step=900, max_steps=1000)
    lines.advance()
    clock[0] += 20
    values = {"images_per_second": 123.4, "loss": 0.12345, "logits_real": 1.0, "skipped_steps": 0}
    lines.show(910, values)
    clock[0] += 20
    lines.show(920, {"images_per_second": 7.06, "kl": 12.0, "loss": 0.1, "skipped_steps": 3})
    lines.say("a word")
    lines.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 910/1000, images_per_second 123, loss 0.123, 03:00 left",
        "step 920/1000, images_per_second 7.06, skipped_steps 3, loss 0.1, kl 12, 02:40 left",
        "a word",
    ]


def test_the_bar_of_a_resumed_run(clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = create_progress(900, 1000, enabled=True)
    assert isinstance(bar, ProgressBar)
    for _ in range(10):
        bar.advance()
    clock[0] += 20
    bar.show(910, {"images_per_second": 123.4, "loss": 0.12345, "skipped_steps": 2})
    bar.bar.refresh()
    bar.close()
    last = terminal.getvalue().split("\r")[-1]
    assert re.fullmatch(r" 91%\|.{16}\| 910/1000 \[00:00<03:00, img/s=123, skipped=2, loss=0\.123\]\s*", last)


def test_silence_on_other_ranks_and_lines_where_there_is_no_terminal(monkeypatch):
    assert type(create_progress(0, 10, enabled=False)) is Progress
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(create_progress(0, 10, enabled=True), ProgressLines)


def test_means_since_the_last_reading():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "late": torch.tensor(5.0)})
    meter.add({"loss": torch.tensor(3.0)})
    meter.after_update()
    assert meter.read() == pytest.approx({"loss": 2.0, "late": 5.0})
    assert meter.read() == {}


def test_a_scalar_that_changes_later_does_not_change_the_mean():
    meter = Meter()
    value = torch.tensor(1.0)
    meter.add({"loss": value})
    value.fill_(100.0)
    meter.after_update()
    assert meter.read() == {"loss": 1.0}


def test_a_step_that_was_not_made_counts_for_nothing():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)})
    meter.after_update(torch.tensor(True))
    meter.add({"loss": torch.tensor(float("nan")), "other": torch.tensor(2.0)})
    meter.after_update(torch.tensor(False))
    assert meter.read() == {"loss": 1.0}


def test_a_resumed_meter_goes_on_where_it_stopped():
    meter, resumed = Meter(), Meter()
    meter.add({"loss": torch.tensor(0.1), "seldom": torch.tensor(7.0)})
    meter.after_update()
    meter.add({"loss": torch.tensor(9.0)})  # of a step that no checkpoint has
    resumed.load_state_dict(meter.state_dict())
    resumed.add({"loss": torch.tensor(0.3)})
    resumed.after_update()
    assert resumed.read() == pytest.approx({"loss": 0.2, "seldom": 7.0})
    resumed.load_state_dict(Meter().state_dict())
    assert resumed.read() == {}


@pytest.mark.parametrize(("rank", "expected"), [(0, 4.0), (1, None)])
def test_with_another_number_of_ranks_the_first_takes_all(monkeypatch, rank, expected):
    state = {"names": ["loss"], "ranks": torch.tensor([[[2.0, 1.0]], [[4.0, 1.0]], [[6.0, 1.0]]])}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    meter = Meter()
    meter.load_state_dict(state)
    monkeypatch.undo()  # read as if the other rank had nothing
    assert meter.read().get("loss") == expected
