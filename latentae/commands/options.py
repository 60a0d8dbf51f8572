"""Parses and runs a command, and defines the options that several commands have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from latentae.console import FAMILIES, errors_as, is_first_process, run

if TYPE_CHECKING:
    import torch

SEVERAL_DEVICES = "To use several devices, start the command with torchrun or `accelerate launch`"


@dataclass(frozen=True)
class Command:
    """A command of `latentae`.

    Attributes:
        name: the word after `latentae`.
        execute: carries the command out; it takes the options by name, and raises errors.
        add_options: adds the options to the parser.
        description, epilog: the text above and below the options in `--help`.
        example: a command line, shown below the options.
        interrupted: what the message after Ctrl-C adds, such as how to continue.
        less_memory: what the message about too little memory advises.
    """

    name: str
    execute: Callable[..., None]
    add_options: Callable[[CommandParser], None]
    description: str
    example: str
    epilog: str = ""
    interrupted: str = ""
    less_memory: str = "choose a smaller --batch-size or --image-size"

    def run(self, arguments: Sequence[str]) -> int:
        """Parses the arguments, carries the command out and returns its exit code; see ``console.run``."""

        def parse_and_execute() -> None:
            self.execute(**vars(self.parser().parse_args(arguments)))

        return run(parse_and_execute, interrupted=self.interrupted, less_memory=self.less_memory)

    def parser(self) -> CommandParser:
        parser = CommandParser(
            f"latentae {self.name}",
            description=self.description,
            epilog="\n\n".join(filter(None, (f"example:\n  {self.example}", self.epilog))),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_options(parser)
        return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option that has one, except switches."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = isinstance(action.default, str | int | float) and action.nargs != 0
        return f"{action.help} (default: %(default)s)" if has_default else action.help


class CommandParser(argparse.ArgumentParser):
    """A parser with the options that several commands share, each worded once.

    Only the first process prints the help or a mistake.
    """

    def _print_message(self, message: str, file: Any = None) -> None:
        if is_first_process():
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Ends the command with exit code 2, in one line; argparse's own would print all options first."""
        self.exit(2, f"error: {message}; `{self.prog} --help` explains the options\n")

    def add_number(
        self, name: str, what: str, default: int | None = None, least: int = 1, **more: Any
    ) -> None:
        """Adds an option that is a whole number of ``least`` or more."""
        kind = _whole_number(least)
        self.add_argument(name, type=kind, default=default, metavar="N", help=what, **more)

    def add_switch(self, name: str, what: str, **more: Any) -> None:
        """Adds an option without a value. ``action="store_false"`` and ``dest`` turn something off."""
        self.add_argument(name, help=what, **{"action": "store_true", **more})

    def add_model(self, name: str = "model", metavar: str = "MODEL", **more: Any) -> None:
        self.add_argument(name, metavar=metavar, help="run, model folder, weights file or hub id", **more)

    def add_models(self) -> None:
        what = "run, model folder, weights file or hub id; NAME=MODEL gives it a name"
        self.add_argument("models", nargs="+", metavar="MODEL", help=what)

    def add_family(self) -> None:
        what = "family that sets the scale and shift of the latents; omitted: what the model records"
        self.add_argument("--family", choices=FAMILIES, help=what)

    def add_families(self) -> None:
        what = f"scale and shift of all models, or of NAME: {', '.join(FAMILIES)}; can be repeated"
        family = "[NAME=]FAMILY"
        self.add_argument("--family", dest="families", action="append", default=[], metavar=family, help=what)

    def add_out(self, what: str) -> None:
        self.add_argument("--out", required=True, type=Path, metavar="FOLDER", help=f"folder for {what}")

    def add_overwrite(self, what: str) -> None:
        self.add_switch("--overwrite", f"replace {what}")

    def add_resizing_by_alpha(self) -> None:
        self.add_switch(
            "--alpha", "images are RGBA: resize their colours weighted by alpha, also of .npy arrays"
        )

    def add_seed(self, what: str) -> None:
        self.add_number("--seed", f"seed of {what}", default=0, least=0)

    def add_batch_size(self, default: int = 16) -> None:
        self.add_number("--batch-size", "images per batch, on each process", default)

    def add_workers(self, dest: str = "num_workers") -> None:
        what = "worker processes that decode images, for each process"
        self.add_number("--num-workers", what, default=0, least=0, dest=dest)

    def add_precision(self, what: str) -> None:
        choices = ("float32", "bfloat16")
        self.add_argument("--precision", default="float32", choices=choices, help=f"precision of the {what}")

    def add_inception(self, metrics: str) -> None:
        what = f"Inception weights of torch-fidelity, for {metrics}; omitted: find or download"
        self.add_argument("--inception", type=Path, metavar="FILE", help=what)

    def add_weights(self) -> None:
        what = (
            "weights of a metric's network: inception, dinov2 or clip; without FILE clip is downloaded "
            "(934 MB); can be repeated"
        )
        self.add_argument("--weights", action="append", default=[], metavar="NAME[=FILE]", help=what)

    def add_data(self, split: str | None, required: bool = True) -> argparse._ArgumentGroup:
        """Adds the options that select images and say how to read them, as ``data.open_source`` takes them.

        Args:
            split: the default; None: the validation split, else the test split, else the first.
            required: whether the command needs data.

        Returns:
            the group of options on reading.
        """
        what = "photos (built in), a path, or a dataset of the Hugging Face hub"
        self.add_argument("--data", required=required, metavar="NAME", help=what)
        omitted = "; omitted: validation, else test, else the first" if split is None else ""
        self.add_argument("--split", default=split, metavar="NAME", help=f"split of the data{omitted}")
        group = self.add_argument_group("reading the data, as data.* in training")
        column = "column of tables, or file extension in tars, that holds the images"
        group.add_argument("--image-column", metavar="NAME", help=column)
        group.add_argument("--dataset-config", metavar="NAME", help="configuration of a dataset of the hub")
        add_decoding(group)
        return group


def add_decoding(group: argparse._ArgumentGroup) -> None:
    """Adds the options on decoding image files, as ``data.decode_image`` takes them."""
    add_value_range(group)
    what = "skip images of more than N pixels as unreadable; omitted: 200000000"
    group.add_argument("--max-pixels", type=_whole_number(1), metavar="N", help=what)


def add_value_range(group: argparse._ArgumentGroup) -> None:
    """Adds the option that says which numbers are black and white."""
    what, names = "values of black and white, for images of more than 8 bits", ("BLACK", "WHITE")
    group.add_argument("--value-range", action=_StorePair, nargs=2, type=float, metavar=names, help=what)


class _StorePair(argparse.Action):
    """Stores two values as a tuple."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _whole_number(least: int) -> Callable[[str], int]:
    """Returns a function that parses a whole number of ``least`` or more."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return number

    return parse


@contextmanager
def open_device() -> Iterator[torch.device]:
    """Joins the processes of a launcher for the body, and yields the device of this process."""
    from latentae import distributed

    with ExitStack() as stack:
        # A process that finds no device for itself is the only one to know.
        with errors_as(2, ValueError, alone=True):
            device = stack.enter_context(distributed.init_from_environment())
        yield device


def write(text: str) -> None:
    """Writes a line to standard output, on the first process only."""
    if is_first_process():
        sys.stdout.write(f"{text}\n")
