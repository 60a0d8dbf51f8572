import errno
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from latentae import cli
from latentae.console import (
    CommandError,
    errors_as,
    is_first_process,
    outlive_output,
    output_pipe_is_closed,
    progress_bar,
    run,
    say,
)


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_which_process_speaks(rank, first, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


class OutOfMemoryError(RuntimeError):
    """torch.OutOfMemoryError, for a test that does not load torch."""


def failing(error):
    def command():
        raise error

    return command


def read_nothing():
    Path("nowhere.txt").read_text()


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (failing(ValueError("a is 0, but must be 1")), 2, "error: a is 0, but must be 1\n"),
        (read_nothing, 2, "error: [Errno 2] No such file or directory: 'nowhere.txt'\n"),
        (failing(CommandError("it failed", 1)), 1, "error: it failed\n"),
        (failing(CommandError("", 1)), 1, ""),
        (failing(KeyboardInterrupt()), 130, "interrupted; go on\n"),
        (failing(SystemExit(2)), 2, ""),
    ],
)
def test_errors_become_messages_and_exit_codes(command, code, message, capsys):
    assert run(command, interrupted="go on") == code
    assert capsys.readouterr() == ("", message)


def test_an_interrupt_with_nothing_to_add(capsys):
    assert run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        TypeError("a bug"),
        SystemExit("told already"),
        # These have other causes, too.
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
    ],
)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error), match=str(error)):
        run(failing(error))
    with pytest.raises(ValueError, match="a bug"):
        run(failing(ValueError("a bug")), bad_input=())


def test_errors_with_an_exit_code_of_their_own():
    for error, message in ((KeyError("of this kind"), "'of this kind'"), (KeyError(), "KeyError")):
        with pytest.raises(CommandError, match=message) as raised, errors_as(1, KeyError, alone=True):
            raise error
        assert (raised.value.code, raised.value.alone) == (1, True)
    for error in (RuntimeError("shapes do not match"), OSError(errno.ENOMEM, "Cannot allocate memory")):
        with pytest.raises(type(error), match=str(error.args[-1])), errors_as(1, KeyError, OSError):
            raise error


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError(f"{ALLOCATOR}allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"),
            "the computer is out of memory (3.00 GiB more could not be allocated)",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "the computer is out of memory"),
        (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            "the computer is out of memory (7.45 GiB more",
        ),
        (MemoryError(), "the computer is out of memory"),
        (MemoryError("malloc: out of memory"), "the computer is out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the computer is out of memory"),
        (OutOfMemoryError("Tried to allocate 9.00 GiB. GPU 0"), "the GPU is out of memory (9.00 GiB more"),
        (RuntimeError("MPS backend out of memory"), "the GPU is out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the GPU is out of memory: ",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU is out of memory: "),
        (
            RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
            "the GPU is out of memory: ",
        ),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "the GPU is out of memory: "),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            "the GPU is out of memory: ",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
            "the computer is out of memory: ",
        ),
    ],
)
def test_too_little_memory_is_one_sentence_with_the_remedy(error, sentence, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # perhaps the only process that has too little
    assert run(failing(error), less_memory="make it smaller") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {sentence}")
    assert message.endswith(": make it smaller\n")
    assert message.count("\n") == 1


def test_an_error_is_told_once_or_by_the_process_that_meets_it_alone(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run(failing(ValueError("of all"))) == 2
    assert run(failing(KeyboardInterrupt())) == 130
    say("of all")
    assert capsys.readouterr().err == ""
    assert run(failing(CommandError("of this one", 1, alone=True))) == 1
    say("of this one", every_process=True)
    assert capsys.readouterr().err == "error: of this one\nof this one\n"


def test_a_name_that_the_encoding_lacks_is_printed_with_escapes():
    code = r"from latentae.console import run; run(lambda: print('caf\xe9'))"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ascii_only)
    assert (result.stdout, result.stderr) == ("caf\\xe9\n", "")


@contextmanager
def output_to_a_pipe():
    """Standard output as a pipe; gives what closes its reader."""
    reader, writer = os.pipe()
    before = sys.stdout
    with os.fdopen(writer, "w", errors="strict") as sys.stdout:
        try:
            yield lambda: os.close(reader)
        finally:
            sys.stdout = before


def test_output_that_nobody_reads_is_dropped():
    with output_to_a_pipe() as close:
        before = sys.stdout
        with outlive_output():
            sys.stdout.write("read\n")
            sys.stdout.flush()
            assert not output_pipe_is_closed()
            close()
            for _ in range(3):
                sys.stdout.write("not read \udce4\n")
                sys.stdout.flush()
            assert output_pipe_is_closed()
            sys.stdout.write("still in the buffer")
        assert sys.stdout is before


@pytest.mark.parametrize("flush", [True, False])
def test_a_full_disk_is_told(monkeypatch, flush):
    @outlive_output()
    def write():
        sys.stdout.write("lost\n")
        if flush:
            sys.stdout.flush()

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit, match="the output cannot be written: No space left"):
            write()
        assert sys.stdout is full


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_on_a_full_disk_fails(unbuffered):
    command = [sys.executable, "-m", "latentae.cli", "encode", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr == "error: the output cannot be written: No space left on device\n"


CLOSED_STREAMS = """
import os, sys
from latentae.console import outlive_output
with outlive_output():
    print("nowhere")
    print("nowhere", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        os.write(1, b"nowhere")
"""


def test_streams_that_were_closed_before_the_start(tmp_path):
    command = f'exec "{sys.executable}" -c "$0" "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, CLOSED_STREAMS, tmp_path / "file"]).returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("command", ["--help", "train vqgan --help", "compare --help", "encode --help"])
def test_every_command_outlives_its_output(command, capfd):
    with output_to_a_pipe() as close:
        close()
        try:
            code = cli.main(command.split())
        except SystemExit as left:
            code = left.code
    assert code == 0
    assert capfd.readouterr().err == ""


def test_progress_in_a_log_is_a_line_at_the_end(monkeypatch):
    said = []
    with progress_bar(3, "images encoded", said.append) as bar:
        bar.update(1)
        bar.update(2)
    (line,) = said
    assert line.startswith("3 of 3 images encoded, ")
    assert "images/s" in line
    progress_bar(0, "images encoded", said.append).close()
    monkeypatch.setenv("RANK", "1")
    with progress_bar(3, "images encoded", said.append) as bar:
        bar.update(3)
    assert len(said) == 1


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr("latentae.console._SECONDS_BETWEEN_LINES", 0.02)
    said = []
    with progress_bar(100, "images encoded", said.append) as bar:
        for _ in range(4):
            time.sleep(0.03)
            bar.update(25)
    assert [line.partition(" images")[0] for line in said[:4]] == [f"{n} of 100" for n in (25, 50, 75, 100)]


def test_progress_on_a_terminal_is_a_bar_with_messages_above(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    said = []
    with progress_bar(2, "images encoded", said.append) as bar:
        bar.update(2)
        say("left out: a.png")
    shown = capsys.readouterr().err
    assert said == []
    assert "\nleft out: a.png\n" in shown.replace("\r", "\n")
    assert "images encoded: 100%" in shown
