import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from latentae import distributed
from latentae.training import signals
from latentae.training.signals import RunStopped, StopSignals
from tests.processes import fork, torchrun
from tests.training.launch import children, in_two_ranks, last_step, output_of, start, wait_for_log

strike = signal.raise_signal  # in this thread; os.kill may choose another, and Python learns of it later


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in signals._LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_waits_until_it_is_asked_for(number, capfd):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.asked() is None
        strike(number)
        assert stop.asked() == number.name
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing the step, then saving" in capfd.readouterr().err


def test_what_was_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            strike(signal.SIGINT)
            assert stop.asked() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_leaving_at_once():
    with StopSignals() as stop:
        stop.leave_at_once("it is saved")
        with pytest.raises(RunStopped, match="stopped by SIGTERM: it is saved"):
            strike(signal.SIGTERM)
    with StopSignals() as stop:
        strike(signal.SIGTERM)
        with pytest.raises(RunStopped, match="stopped by SIGTERM: it is saved"):
            stop.leave_at_once("it is saved")


def twice(first, second, launched, seconds):
    """What a process does that gets two signals; it ends with code 7 if it survives them."""
    if launched:
        os.environ["TORCHELASTIC_RUN_ID"] = "x"
    signals._ECHO_SECONDS = 0.1
    with StopSignals() as stop:
        strike(first)
        time.sleep(seconds)
        strike(second)
        sys.exit(7 if stop.asked() == first.name else 8)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM, False, 0), -signal.SIGTERM),
        ((signal.SIGTERM, signal.SIGINT, False, 0), -signal.SIGINT),
        ((signal.SIGTERM, signal.SIGTERM, True, 0), 7),  # the launcher passes on what has come here already
        ((signal.SIGINT, signal.SIGINT, True, 0.2), -signal.SIGINT),
        ((signal.SIGHUP, signal.SIGHUP, False, 0.2), 7),  # as a terminal that closes sends it
        ((signal.SIGHUP, signal.SIGTERM, False, 0), -signal.SIGTERM),
    ],
)
def test_the_second_one_ends_at_once(arguments, code):
    process = fork(twice, *arguments)
    process.join(30)
    assert process.exitcode == code


def steps_until_asked(folder):
    """One of two ranks is struck in its step 3: the steps each has made when it is told to leave."""
    with StopSignals() as stop:
        for step in range(1, 10):
            if step == 3 and distributed.rank() == 1:
                strike(signal.SIGTERM)
            if stop.asked() == "SIGTERM":
                return step
    return None


def test_ranks_leave_after_the_same_step(tmp_path):
    assert in_two_ranks(steps_until_asked, tmp_path) == [4, 4]


def told_after_the_last_step(folder):
    """One of two ranks is struck after its last vote: whether each is told to leave before the end's work."""
    with StopSignals() as stop:
        for _ in range(3):
            assert stop.asked() is None
        if distributed.rank() == 1:
            strike(signal.SIGTERM)
        try:
            stop.leave_at_once("it is saved")
        except RunStopped as stopped:
            return str(stopped)
    return None


def test_a_signal_in_one_rank_s_last_step_reaches_all(tmp_path):
    assert in_two_ranks(told_after_the_last_step, tmp_path) == ["stopped by SIGTERM: it is saved"] * 2


def told_while_it_measures(folder):
    """One of two ranks is struck after all voted, and the other works on in Python."""
    try:
        with StopSignals() as stop:
            stop.leave_at_once("it is saved")
            if distributed.rank() == 1:
                strike(signal.SIGUSR1)
            for _ in range(1000):
                time.sleep(0.01)
    except RunStopped as stopped:
        return str(stopped)
    return None


def test_a_signal_to_one_rank_at_the_end_reaches_all(tmp_path):
    assert in_two_ranks(told_while_it_measures, tmp_path) == ["stopped by SIGUSR1: it is saved"] * 2


def blocked_in_a_library(folder):
    """Rank 1 is struck and leaves, rank 0 is where Python cannot interrupt it, as in a collective call."""
    signals._GRACE_SECONDS = 0.2
    (folder / "result_0.json").write_text('"left"')
    try:
        with StopSignals() as stop:
            stop.leave_at_once("it is saved")
            if distributed.rank() == 0:
                os.dup2(os.open(folder / "errors.txt", os.O_WRONLY | os.O_CREAT), 2)
                libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
                while True:  # the second time it waits for ever
                    libc.pthread_mutex_lock(mutex)
            strike(signal.SIGTERM)
            time.sleep(50)
    except RunStopped as stopped:
        return str(stopped)


def test_a_rank_that_cannot_be_interrupted_is_not_waited_for(tmp_path):
    assert in_two_ranks(blocked_in_a_library, tmp_path) == ["left", "stopped by SIGTERM: it is saved"]
    assert "stopped by SIGTERM: it is saved" in (tmp_path / "errors.txt").read_text()


def done_at_different_times(folder):
    with StopSignals() as stop:
        stop.leave_at_once("it is saved")
        time.sleep(0.5 * distributed.rank())
    return "done"


def test_ranks_that_finish_leave_together(tmp_path):
    assert in_two_ranks(done_at_different_times, tmp_path) == ["done"] * 2


def test_the_end_of_the_launcher_counts(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopSignals() as stop:
        assert stop.asked() is None
        other = os.getppid() + 1
        monkeypatch.setattr(os, "getppid", lambda: other)
        assert stop.asked() == "the end of its launcher"


ENDLESS = ["max_steps=100000", "checkpoint_every=100000", "log_every=1"]


def test_a_scheduler_strikes_workers_too(tiny, tmp_path):
    command = ["scripts/train_vqgan.py", "--config", tiny.file, *ENDLESS, "data.num_workers=2"]
    process = start(sys.executable, *command)
    wait_for_log(tmp_path / "run", process)
    os.killpg(process.pid, signal.SIGTERM)
    printed = output_of(process, code=0)
    assert last_step(tmp_path / "run") > 0
    assert f"stopped by SIGTERM: the run is saved at step {last_step(tmp_path / 'run')}; the same" in printed


def test_a_run_does_not_outlive_accelerate_launch(tiny, tmp_path):
    launcher = [Path(sys.executable).parent / "accelerate", "launch", "--cpu", "--quiet"]
    process = start(*launcher, "scripts/train_vqgan.py", "--config", tiny.file, *ENDLESS)
    wait_for_log(tmp_path / "run", process)
    process.kill()
    printed = output_of(process, code=-signal.SIGKILL)  # the run holds the pipe until it ends
    assert "stopped by the end of its launcher" in printed
    assert last_step(tmp_path / "run") > 0


def test_torchrun_passes_it_on(tiny, tmp_path):
    process = start(*torchrun(2), "scripts/train_vqgan.py", "--config", tiny.file, *ENDLESS)
    wait_for_log(tmp_path / "run", process)
    ranks = children(process)
    assert len(ranks) == 2
    for struck in (*ranks, process.pid):  # as Slurm does; so the ranks get it twice
        os.kill(struck, signal.SIGTERM)
    printed = output_of(process, code=1)  # torchrun's own, which tells of the signal
    assert "broadcast_buffers" not in printed  # a warning of torch, whose advice is followed
    assert f"stopped by SIGTERM: the run is saved at step {last_step(tmp_path / 'run')}; the same" in printed
