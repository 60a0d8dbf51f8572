"""Prints messages and progress bars; `run` turns the errors of a command into exit codes.

Nothing heavy is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# Errors of writing to an output without a reader: a closed pipe, a closed terminal.
_NO_READER = (errno.EPIPE, errno.EIO)
_SECONDS_BETWEEN_LINES = 10.0
# What torch's errors say of too little memory. Libraries such as cuBLAS and cuDNN also allocate: they say
# CUBLAS_STATUS_ALLOC_FAILED, and since cuDNN 9 CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
# CUDNN_STATUS_INTERNAL_ERROR alone has other causes, too.
_CPU_MEMORY = ("can't allocate memory", "not enough memory", "HOST_ALLOCATION_FAILED")
_GPU_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")

FAMILIES = ("sd1", "sdxl", "sd3", "flux")
"""Families of models whose scale and shift are known, named as in latentae/models/checkpoints/families.py."""


class CommandError(Exception):
    """Ends a command: `run` prints the message, unless it is empty, and returns the code.

    Attributes:
        code: the exit code.
        alone: print the message on this process although it is not the first, since it may be the only one
            that has failed.
    """

    def __init__(self, message: str, code: int, *, alone: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.alone = alone


def run(
    command: Callable[[], int | None],
    *,
    interrupted: str = "",
    less_memory: str = "close other programs, or use a machine with more memory",
    bad_input: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Runs a command and returns its exit code. This is the only place where errors become messages.

    Exit codes: 0 done, 1 failed after the work had begun or for lack of memory, 2 input that cannot be used,
    130 interrupted. An error that nobody expects is a bug: it keeps its traceback. Several processes print a
    message once.

    Args:
        command: does the work and returns an exit code; None is 0.
        interrupted: what the message after Ctrl-C adds, such as how to continue.
        less_memory: how to use less memory, for the message when there is too little.
        bad_input: the kinds of error that end with exit code 2.
    """
    with outlive_output():
        try:
            with errors_as(2, *bad_input), _explain_lack_of_memory(less_memory):
                return command() or 0
        except CommandError as error:
            if str(error) and (error.alone or is_first_process()):
                sys.stderr.write(f"error: {error}\n")
            return error.code
        except KeyboardInterrupt:
            if is_first_process():
                sys.stderr.write(f"interrupted{interrupted and f'; {interrupted}'}\n")
            return 130
        except SystemExit as stopped:  # argparse has printed the help or the mistake
            if not isinstance(stopped.code, int):
                raise
            return stopped.code


@contextmanager
def errors_as(code: int, *kinds: type[Exception], alone: bool = False) -> Iterator[None]:
    """Turns errors of these kinds into a `CommandError` with this exit code.

    Args:
        code: the exit code.
        kinds: classes of errors. An error of too little memory is left to `run`.
        alone: whether this process prints the message although it is not the first.
    """
    try:
        yield
    except kinds as error:
        if is_out_of_memory(error):
            raise
        raise CommandError(str(error) or type(error).__name__, code, alone=alone) from error


@contextmanager
def _explain_lack_of_memory(remedy: str) -> Iterator[None]:
    """Turns an error of too little memory into a `CommandError` that says where it was, and the remedy."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Perhaps only this process has too little, so it prints the message even if it is not the first.
        raise CommandError(f"{describe_lack_of_memory(error)}: {remedy}", 1, alone=True) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory, on a CPU or a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM

    return _says(error, _CPU_MEMORY + _GPU_MEMORY) or isinstance(error, MemoryError) or _is_torchs_own(error)


def describe_lack_of_memory(error: Exception) -> str:
    """Returns where there was too little memory, and how much was asked for if the error tells."""
    text = str(error)
    on_gpu = _is_torchs_own(error) or (_says(error, _GPU_MEMORY) and not _says(error, _CPU_MEMORY))
    place = "the GPU is out of memory" if on_gpu else "the computer is out of memory"
    found = re.search(r"allocate (\d[\d.]*) (bytes|[KMGT]iB)", text)
    if found is None:
        return place
    amount, unit = found.groups()
    asked = f"{int(amount) / 2**30:,.2f} GiB" if unit == "bytes" else f"{amount} {unit}"
    return f"{place} ({asked} more could not be allocated)"


def _says(error: Exception, phrases: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def _is_torchs_own(error: Exception) -> bool:
    """Whether it is torch's error of a GPU, by name: torch is not imported here."""
    return type(error).__name__ == "OutOfMemoryError"


def is_first_process() -> bool:
    """Whether this process is rank 0 of its launcher; known before the processes are joined."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str, *, every_process: bool = False) -> None:
    """Writes a line to standard error, above the progress bar if there is one.

    Args:
        text: the line.
        every_process: write it on every process; False: on the first only.
    """
    if every_process or is_first_process():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)


def progress_bar(total: int, what: str, say: Callable[[str], None], unit: str = "image") -> Any:
    """Returns a tqdm bar for a terminal, or one that logs a line every ten seconds and one at the end.

    Only the first process shows its progress.

    Args:
        total: the number of units for this process.
        what: what is counted, such as ``images encoded``.
        say: writes the lines of the log.
        unit: the unit of the rate.
    """
    from tqdm import tqdm

    disable = not (total and is_first_process())
    if sys.stderr.isatty():
        return tqdm(desc=what, total=total, unit=f" {unit}s", disable=disable)
    lines = _LogLines()
    bar = tqdm(
        total=total,
        unit=f" {unit}s",
        bar_format=f"{{n_fmt}} of {{total_fmt}} {what}, {{rate_noinv_fmt}}, {{remaining}} left",
        mininterval=_SECONDS_BETWEEN_LINES,
        miniters=1,
        file=lines,
        disable=disable,
    )
    lines.say = say  # only now: tqdm has drawn an empty bar
    return bar


class _LogLines:
    """A file for tqdm that passes each drawn bar to `say` as one line."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = lambda text: None

    def write(self, text: str) -> None:
        if line := text.strip():
            self.say(line)

    def flush(self) -> None:
        """There is nothing to flush."""


class _Output(io.FileIO):
    """A file descriptor that drops its output once nobody reads it any more.

    Attributes:
        lost_pipe: whether it is a pipe whose reader has gone.
        failure: the error of a write that has failed for another reason, such as a full disk.
    """

    lost_pipe = False
    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                self.failure = error
                raise
            self.lost_pipe = self.lost_pipe or error.errno == errno.EPIPE
            return memoryview(data).nbytes


@contextmanager
def outlive_output() -> Iterator[None]:
    """Keeps a command running when the reader of its output goes away, or was never there.

    Output that nobody can read is dropped, and the work continues: `latentae ... | head -1` neither ends in a
    traceback nor loses results. `output_pipe_is_closed` reports it.

    Raises:
        SystemExit: the output goes to a disk that is full; the exit code is 1.
    """
    before = sys.stdout, sys.stderr
    if None in before:
        _fill_descriptors()
    sys.stdout, sys.stderr = guarded = _guard(before[0], 1), _guard(before[1], 2)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        try:
            for stream in guarded:
                stream.flush()
                if failure := getattr(_descriptor_of(stream), "failure", None):
                    raise failure  # which argparse ignores, and an unbuffered stream forgets
        except OSError as error:
            raise SystemExit(f"error: the output cannot be written: {error.strerror}") from error


def output_pipe_is_closed() -> bool:
    """Whether the reader of standard output or error has gone; known after the first write that failed."""
    outputs = (_descriptor_of(stream) for stream in (sys.stdout, sys.stderr))
    return any(isinstance(output, _Output) and output.lost_pipe for output in outputs)


def write_to_terminal(text: str) -> None:
    """Writes a line to standard error at once, even from a signal handler that has interrupted a print.

    A print cannot be called inside another one. A missing reader is ignored.
    """
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _guard(stream: TextIO | None, number: int) -> TextIO:
    """Returns the stream on a descriptor that outlives its reader; a stream without a descriptor stays."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Output(number, "w", closefd=False)), line_buffering=True)
    output = _descriptor_of(stream)
    if not isinstance(stream, io.TextIOWrapper) or type(output) is not io.FileIO:
        return stream  # guarded already, or not a file, such as in a notebook
    stream.flush()
    guarded = _Output(output.fileno(), "w", closefd=False)
    unbuffered = stream.buffer is output  # as with `python -u`
    return io.TextIOWrapper(
        guarded if unbuffered else io.BufferedWriter(guarded),
        encoding=stream.encoding,
        # A file name that the encoding cannot express is printed with escapes.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _descriptor_of(stream: Any) -> Any:
    """Returns the lowest layer of a text stream, below its buffer if it has one; None: it has no layers."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _fill_descriptors() -> None:
    """Opens the null device in place of standard streams that were closed before the start.

    Otherwise the next file to be opened would get their descriptor, and messages would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
