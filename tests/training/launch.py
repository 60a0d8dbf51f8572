"""What tests of ranks, signals and kills share: processes to wait for or strike, and a run's whole state."""

import json
import os
import subprocess
import time
from pathlib import Path

import torch.distributed as dist

from latentae.training.run_folder import RunFolder, step_of
from tests.processes import ROOT, environment, run_ranks


def start(*words, **extra):
    """A process of its own group, whose output is kept; ``extra`` is environment."""
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(HF_HUB_OFFLINE="1", **extra),
        start_new_session=True,
    )


def output_of(process, code=0, seconds=120):
    """What a process prints until it ends, which it must do with the given code."""
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        printed, _ = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{printed[-3000:]}") from None
    assert process.returncode == code, f"ended with {process.returncode}:\n{printed[-3000:]}"
    return printed


def children(process):
    """Process ids of what a launcher has started."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_for_log(run, *processes, seconds=100):
    """Until a run has logged something; its processes have to live as long."""
    ends = time.monotonic() + seconds
    while not (run / "metrics.jsonl").exists():
        for process in processes:
            assert process.poll() is None, output_of(process)
        assert time.monotonic() < ends, f"no step in {seconds} s"
        time.sleep(0.05)


def last_step(run):
    """The step of the newest checkpoint, 0 without one."""
    return max((step_of(path) for path in RunFolder(run).all_checkpoints()), default=0)


def states_of(trainer):
    """Everything that accelerate saves of a trainer, by kind."""
    accelerator = trainer.accelerator
    return {
        "models": [accelerator.unwrap_model(model).state_dict() for model in accelerator._models],
        "optimizers": [optimizer.state_dict() for optimizer in accelerator._optimizers],
        "others": [other.state_dict() for other in accelerator._custom_objects],
    }


def flatten(state, name=""):
    """Dotted names and values of all leaves of nested dicts, lists and tuples."""
    leaves = {}
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, dict | list | tuple):
            leaves |= flatten(value, f"{name}{key}.")
        else:
            leaves[f"{name}{key}"] = value
    return leaves


def log_lines(run):
    """The lines of a run's log, without what depends on the clock; numbers of lists by name and place."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [flatten({name: line[name] for name in line if "per_second" not in name}) for line in lines]


def in_two_ranks(function, folder):
    """What a function of ``folder`` returns in each of two processes, joined over gloo."""
    run_ranks(_as_rank, 2, function, folder)
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in (0, 1)]


def _as_rank(rank, function, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    (folder / f"result_{rank}.json").write_text(json.dumps(function(folder)))
    dist.destroy_process_group()
