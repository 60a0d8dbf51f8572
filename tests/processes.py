"""Several real processes on one machine, joined over gloo.

A new interpreter needs seconds of processor time to import torch and diffusers. `fork`, `run_ranks`, `launch`
and `run_script` start processes from a server instead, which has imported everything once and has computed
nothing. `torchrun` is for what only a launcher shows.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from multiprocessing import connection, forkserver
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
_VARIABLES = dict(os.environ)  # as they were before a test changed any


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra):
    """For a process that computes on the CPU with one thread, and finds the package."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def torchrun(processes):
    """The command that starts a script in several processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return [*launcher, "--master_addr=127.0.0.1", f"--master_port={free_port()}"]


def launch_by_torchrun(script, processes, *arguments, **extra):
    """What `launch` does, by torch's own launcher."""
    command = [*torchrun(processes), str(script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(**extra))
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result


def launch(script, processes, *arguments, **extra):
    """Runs a script in several processes to its end, which must be a good one; ``extra`` is environment.

    Args:
        script: Path, relative to the repository or absolute.
        processes: Their number. The script finds rank and world size where torchrun leaves them.
        arguments: What follows the script on a command line.

    Returns:
        What all of them have printed, as `stdout` and `stderr`.
    """
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank, **extra} for rank in range(processes)]
    done = _fork_scripts(script, arguments, ranks)
    assert done.returncode == [0] * processes, f"{done.returncode}:{done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done


def run_script(script, *arguments, **extra):
    """What a script prints, and its exit code, in a process without ranks; ``extra`` is environment."""
    done = _fork_scripts(script, arguments, [extra])
    return subprocess.CompletedProcess(script, *done.returncode, done.stdout, done.stderr)


def run_ranks(function, processes, *arguments):
    """Calls ``function(rank, *arguments)`` in several processes, all of which must return."""
    codes = join([fork(function, rank, *arguments) for rank in range(processes)])
    assert codes == [0] * processes, codes


def fork(function, *arguments, variables=None):
    """Starts a process that calls a function of a module; ``variables`` is its whole environment."""
    _start_server()
    given = dict(os.environ) if variables is None else variables
    process = CONTEXT.Process(target=_call, args=(function, arguments, given))
    process.start()
    return process


def join(processes, seconds=120):
    """Waits for processes, and kills those that a failed one or the time limit leaves behind: exit codes."""
    ends, running = time.monotonic() + seconds, list(processes)
    while running and time.monotonic() < ends and not any(process.exitcode for process in processes):
        connection.wait([process.sentinel for process in running], timeout=1)
        running = [process for process in running if process.is_alive()]
    if running:
        time.sleep(0.5)  # for a message of their own
    for process in running:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


@cache
def _start_server():
    """Starts the server that the processes are forked from, outside of any test's folder and environment."""
    CONTEXT.set_forkserver_preload(["tests.preloaded"])
    variables, folder = dict(os.environ), Path.cwd()
    try:
        _replace_environment(_VARIABLES)
        os.chdir(ROOT)
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
        _replace_environment(variables)


def _fork_scripts(script, arguments, extras):
    """Runs a script in a process for each environment: all exit codes, and what they print together."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder) / name for name in ("stdout", "stderr")]
        started = []
        for extra in extras:
            variables = environment(**{name: str(value) for name, value in extra.items()})
            started.append(fork(_run_script, str(script), arguments, printed, variables=variables))
        codes = join(started, seconds=600)
        texts = [path.read_text() if path.exists() else "" for path in printed]
    return subprocess.CompletedProcess(script, codes, *texts)


def _replace_environment(variables):
    os.environ.clear()
    os.environ.update(variables)


def _call(function, arguments, variables):
    _replace_environment(variables)
    # As in any other process, and not as this one was started: workers of data loaders depend on it.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    function(*arguments)


def _run_script(script, arguments, printed):
    """What `python SCRIPT ARGUMENT...` does in the repository, with the output in two files."""
    for stream, path in enumerate(printed, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(ROOT)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
