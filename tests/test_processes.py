"""What the tests of several processes stand on: an assertion that fails in a rank fails the test."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tests.processes import fork, join, launch, run_ranks, run_script

SCRIPT = """
import os, sys
rank = os.environ["RANK"]
print("to standard output", rank, sys.argv[1:], os.getcwd() in sys.path)
print("to standard error", os.environ["MASTER_ADDR"], os.environ["EXTRA"], file=sys.stderr)
sys.exit(0 if rank != sys.argv[-1] else 3)
"""


def test_a_launched_script_sees_what_torchrun_shows_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = launch(script, 2, "a b", "none", EXTRA="more")
    assert sorted(done.stdout.splitlines()) == [
        f"to standard output {rank} ['a b', 'none'] True" for rank in (0, 1)
    ]
    assert done.stderr.splitlines() == ["to standard error 127.0.0.1 more"] * 2
    with pytest.raises(AssertionError, match=r"^\[0, 3\]"):
        launch(script, 2, "1", EXTRA="")
    alone = run_script(script, "7", RANK="7", MASTER_ADDR="", EXTRA="x")
    assert (alone.returncode, alone.stderr) == (3, "to standard error  x\n")


def compare(rank):
    if rank == 1:
        assert rank == 0
    time.sleep(600)  # as one that waits for the other


def test_a_rank_that_fails_takes_the_others_along():
    with pytest.raises(AssertionError, match=r"\[-9, 1\]"):
        run_ranks(compare, 2)


def test_a_process_that_never_ends_is_killed():
    assert join([fork(time.sleep, 600)], seconds=0.2) == [-9]


def write_place(path):
    start = multiprocessing.get_start_method()
    path.write_text(f"{Path.cwd()} {os.environ.get('LATENTAE_CACHE')} {start}")


def test_a_forked_process_is_where_the_test_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTAE_CACHE", "elsewhere")
    assert join([fork(write_place, tmp_path / "seen")]) == [0]
    assert (tmp_path / "seen").read_text() == f"{tmp_path} elsewhere {multiprocessing.get_start_method()}"
