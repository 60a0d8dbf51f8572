import io
import re
import sys
import time

import pytest

from latentae.training.progress import Pace, ProgressBar, ProgressLines, Silence, create_progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_the_pace_is_that_of_this_process(clock):
    pace = Pace(step=900)  # a resumed run
    assert pace.seconds_a_step() is None
    clock[0] += 20
    pace.mark(910)
    assert pace.seconds_a_step() == 2.0
    clock[0] += 40  # a checkpoint, say
    pace.mark(920)
    assert pace.seconds_a_step() == 3.0
    for step in range(930, 1130, 10):
        clock[0] += 10
        pace.mark(step)
    assert pace.seconds_a_step() == 1.0  # the slow start is forgotten


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
    assert isinstance(create_progress(0, 10, enabled=False), Silence)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(create_progress(0, 10, enabled=True), ProgressLines)
