"""Helpers that all commands share. They import nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# What writing raises once nobody can read it: a pipe without a reader, a terminal that was closed.
_NO_READER = (errno.EPIPE, errno.EIO)
_SECONDS_BETWEEN_LINES = 10.0

FAMILIES = ("sd1", "sdxl", "sd3", "flux")
"""The families whose scale and shift are known: the names in latentae/models/checkpoints/families.py."""


def is_first_process() -> bool:
    """Whether this process is rank 0 of those that a launcher started, known before they are joined."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Writes a line to standard error, above a progress bar where one is shown."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def progress_bar(total: int, what: str, say: Callable[[str], None], unit: str = "image") -> Any:
    """Returns a tqdm bar: drawn on a terminal, and in a log a line every ten seconds and one at the end.

    Args:
        total: how many there are for this process.
        what: is done, such as ``images encoded``.
        say: writes the lines of a log. Only the first process shows its progress.
        unit: of the rate.
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
    """A file for tqdm that passes each drawn bar on as one line."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = lambda text: None

    def write(self, text: str) -> None:
        if line := text.strip():
            self.say(line)

    def flush(self) -> None:
        """There is nothing to flush."""


class _Output(io.FileIO):
    """A file descriptor that drops what is written to it once it has no reader any more.

    Attributes:
        lost_pipe: whether it was a pipe whose reader has gone.
    """

    lost_pipe = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
            self.lost_pipe = self.lost_pipe or error.errno == errno.EPIPE
            return memoryview(data).nbytes


@contextmanager
def outlive_output() -> Iterator[None]:
    """Within it standard output and error may be closed by their reader, or be closed already.

    What cannot be read any more is dropped, and the work goes on: `latentae ... | head -1` neither ends in a
    traceback nor loses results. `output_pipe_is_closed` tells of it. A full disk is an error: exit code 1.
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
        except OSError as error:
            raise SystemExit(f"error: the output cannot be written: {error.strerror}") from error


def output_pipe_is_closed() -> bool:
    """Whether the reader of standard output or error has gone, which only writing to it finds out."""
    outputs = (_descriptor_of(stream) for stream in (sys.stdout, sys.stderr))
    return any(isinstance(output, _Output) and output.lost_pipe for output in outputs)


def write_to_terminal(text: str) -> None:
    """Writes a line to standard error at once, also from a signal handler that interrupts a print.

    A print cannot be called inside itself. Nobody may be there to read it.
    """
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _guard(stream: TextIO | None, number: int) -> TextIO:
    """The stream on a descriptor that outlives its reader; one without a descriptor stays as it is."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Output(number, "w", closefd=False)), line_buffering=True)
    output = _descriptor_of(stream)
    if not isinstance(stream, io.TextIOWrapper) or type(output) is not io.FileIO:
        return stream  # guarded already, or something of its own, such as a notebook's
    stream.flush()
    guarded = _Output(output.fileno(), "w", closefd=False)
    unbuffered = stream.buffer is output  # as with `python -u`
    return io.TextIOWrapper(
        guarded if unbuffered else io.BufferedWriter(guarded),
        encoding=stream.encoding,
        # A name that the encoding has no characters for is shown with escapes, and ends no run.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _descriptor_of(stream: Any) -> Any:
    """The lowest layer of a text stream, below its buffer if it has one; None: it has no layers."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _fill_descriptors() -> None:
    """Opens the null device in place of standard streams that were closed before the start.

    Otherwise the next file opened would get such a descriptor, and messages would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def add_family_option(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds ``--family``, for a model that does not record its scale, such as a published file.

    Args:
        parser: of a command that opens models with ``load_autoencoder``.
        several: whether the command takes several models. The option can then be repeated, and its value may
            name one model: ``--family NAME=FAMILY``. The result is the list ``families``.
    """
    if several:
        parser.add_argument(
            "--family",
            dest="families",
            action="append",
            default=[],
            metavar="[NAME=]FAMILY",
            help=f"the family that gives every model, or the model called NAME, its scale and shift: "
            f"{', '.join(FAMILIES)} (what each model records); can be repeated",
        )
        return
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="the family that gives the model its scale and shift (what the model records)",
    )


def add_reading_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds a group of options on reading the data, as ``open_source`` takes them."""
    reading = parser.add_argument_group("reading the data, as data.* in training")
    reading.add_argument("--image-column", metavar="NAME", help="the column of tables, the extension in tars")
    reading.add_argument("--dataset-config", metavar="NAME", help="the configuration of a hub dataset")
    _add_decoding_options(reading)
    return reading


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Adds those options on reading the data that apply to image files, as ``decode_image`` takes them."""
    _add_decoding_options(parser.add_argument_group("reading the pictures, as data.* in training"))


def _add_decoding_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--value-range",
        action=_StorePair,
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="of images beyond 8 bits",
    )
    group.add_argument(
        "--max-pixels",
        type=_positive,
        metavar="N",
        help="of the largest picture that is decoded; larger ones count as unreadable (200000000)",
    )


class _StorePair(argparse.Action):
    """Stores two values as a tuple."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number
