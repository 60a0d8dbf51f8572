import os

import psutil
import pytest

from latentae.training import start_command
from latentae.training.start_command import how_started

SCRIPT = ["scripts/train_vqgan.py", "--config", "q", "max_steps=2"]
COMMAND = ["/usr/lib/latentae/cli.py", "train", "vqgan", "seed=1"]
PYTHON = "/usr/bin/python"


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.setattr(start_command, "program_name", lambda name: name)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(monkeypatch, own, *ancestors, **environment):
    monkeypatch.setattr("sys.argv", own)
    monkeypatch.setattr(start_command, "_command_lines", lambda: list(ancestors))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return how_started()


@pytest.mark.parametrize(
    ("own", "parent", "words"),
    [
        (
            SCRIPT,
            [PYTHON, "/bin/torchrun", "--nproc_per_node", "2", *SCRIPT],
            "torchrun --nproc_per_node 2 SCRIPT",
        ),
        (
            SCRIPT,
            [PYTHON, "/bin/accelerate", "launch", "--quiet", *SCRIPT],
            "accelerate launch --quiet SCRIPT",
        ),
        (
            COMMAND,
            [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node=4", "-m", "latentae.cli", *COMMAND[1:]],
            "python -m torch.distributed.run --nproc_per_node=4 -m latentae.cli",
        ),
        (SCRIPT, ["bash", "-c", "python " + " ".join(SCRIPT)], "python SCRIPT"),
        (
            SCRIPT,
            [PYTHON, "/bin/torchrun", "--nproc_per_node", "2", "other.py", *SCRIPT[1:]],
            "python SCRIPT",
        ),
        (["/bin/latentae", "train", "vqgan"], ["bash"], "latentae"),
    ],
)
def test_the_launcher_of_this_process(monkeypatch, own, parent, words):
    found = start(monkeypatch, own, parent)
    assert list(found.words) == words.replace("SCRIPT", SCRIPT[0]).split()
    assert found.beside == ""


def test_a_script_between_the_launcher_and_this_process(monkeypatch):
    torchrun = [PYTHON, "/bin/torchrun", "--nproc_per_node=8", *SCRIPT]
    assert start(monkeypatch, SCRIPT, ["bash", "wrapper.sh"], torchrun).words[:2] == (
        "torchrun",
        "--nproc_per_node=8",
    )


def test_processes_that_no_launcher_was_seen_to_start(monkeypatch):
    assert start(monkeypatch, SCRIPT, ["slurmstepd"], WORLD_SIZE="8").beside == ", started as 8 processes"


def test_other_nodes(monkeypatch):
    torchrun = [PYTHON, "/bin/torchrun", "--nnodes", "2", "--nproc_per_node", "4", *SCRIPT]
    found = start(monkeypatch, SCRIPT, torchrun, WORLD_SIZE="8", LOCAL_WORLD_SIZE="4")
    assert found.words[1:3] == ("--nnodes", "2")
    assert found.beside == ", started on each of 2 nodes"


def test_the_processes_above_this_one():
    assert start_command._command_lines()[0] == psutil.Process(os.getppid()).cmdline()


def test_processes_that_the_system_hides(monkeypatch):
    def hidden(process):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "parents", hidden)  # as /proc mounted with hidepid=1
    assert start_command._command_lines() == []
