"""The command line: `latentae train FAMILY …`, and what the files in scripts/ call.

Nothing heavy is imported before the config has been read, so that a mistake in it is answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from latentae.config import FAMILIES, ConfigError, RunConfig, load_config
from latentae.console import is_first_process, outlive_output, output_pipe_is_closed
from latentae.training.launcher import apply_launcher_settings
from latentae.training.run_folder import RankError, RunError, RunFolder, describe_pretrained
from latentae.training.summary import describe, finished_summary

_DRY_RUN = "--dry-run"
_USAGE = """\
usage: latentae train FAMILY [--config NAME_OR_PATH] [--dry-run] [key=value ...]
       latentae stats MODEL --data NAME [--out FOLDER] ...
       latentae encode MODEL --data NAME --out FOLDER ...
       latentae inspect MODEL --data NAME --out FOLDER ...
       latentae evaluate MODEL [MODEL ...] --data NAME --out FOLDER ...
       latentae compare REPORT REPORT
       latentae probe MODEL [MODEL ...] --data NAME --out FOLDER ...
       latentae export RUN_OR_MODEL --format FORMAT --out PATH ...
       latentae reconstruct IMAGE_OR_FOLDER OUT --model MODEL ...

  FAMILY    {families}

`latentae train FAMILY --help` lists every key. Several devices: `accelerate launch -m latentae.cli train ...`
"""


@outlive_output()
def train(family: str, arguments: Sequence[str] | None = None) -> int:
    """Trains an autoencoder of a family; returns the exit code.

    0: done, or left as asked; 1: failed; 2: bad input.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    dry = _DRY_RUN in given
    try:
        arguments = [argument for argument in given if argument != _DRY_RUN]
        config = apply_launcher_settings(load_config(family, arguments, describe_pretrained))
        folder = RunFolder(Path(config.output_dir))
        folder.check(config)
    except ConfigError as error:
        return _fail(str(error), 2)
    finished = finished_summary(folder, config) if folder.resume_of(config) == "auto" and not dry else None
    if finished is not None:
        print(f"The run in {folder.root} is complete. {describe(folder, finished)}")
        return 0

    try:
        return _dry_run(config) if dry else _run(config)
    except KeyboardInterrupt:  # while training it would have been a RunStopped
        return _fail("interrupted; the same command continues from the last checkpoint", 130)


def _run(config: RunConfig) -> int:
    from latentae.training.signals import RunStopped
    from latentae.training.trainer import Trainer
    from latentae.weights import WeightsNotFoundError

    try:
        trainer = Trainer(config)
    except (ValueError, WeightsNotFoundError) as error:
        return _fail(str(error), 2)
    try:
        trainer.fit()
    except RunError as error:
        return _fail(str(error), 1, alone=isinstance(error, RankError))
    except RunStopped as stop:  # as asked, and nothing is lost: no failure to a job scheduler
        if is_first_process():  # where nobody reads the output any more, somebody may read the errors
            print(stop, file=sys.stderr if output_pipe_is_closed() else sys.stdout)
    return 0


def _dry_run(config: RunConfig) -> int:
    from latentae.training.dry_run import dry_run
    from latentae.weights import WeightsNotFoundError

    try:
        report = dry_run(config)
    except (ValueError, WeightsNotFoundError) as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    if is_first_process():
        print(report)
    return 0


@outlive_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `latentae` command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    usage = _USAGE.format(families=" | ".join(FAMILIES))
    if given in ([], ["-h"], ["--help"]):
        print(usage)
        return 0 if given else 2
    command, *rest = given
    if command not in _COMMANDS:
        return _fail(f"unknown command {command!r}\n{usage}", 2)
    try:
        return _COMMANDS[command](rest)
    except KeyboardInterrupt:  # while it was still being loaded: later each has more to say
        return _fail("interrupted", 130)


def _train_command(arguments: list[str]) -> int:
    family = arguments[0].replace("-", "_") if arguments else ""
    if family not in FAMILIES:
        return _fail(
            f"`latentae train` needs a family, one of {', '.join(FAMILIES)}; got {family or 'none'}", 2
        )
    return train(family, arguments[1:])


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train_command,
    "stats": lambda arguments: import_module("latentae.latents.command").main(arguments),
    "encode": lambda arguments: import_module("latentae.latents.encode_command").main(arguments),
    "inspect": lambda arguments: import_module("latentae.latents.inspect_command").main(arguments),
    "probe": lambda arguments: import_module("latentae.probe.command").main(arguments),
    "export": lambda arguments: import_module("latentae.export.command").main(arguments),
    "evaluate": lambda arguments: import_module("latentae.evaluation.evaluate_command").main(arguments),
    "compare": lambda arguments: import_module("latentae.evaluation.compare_command").main(arguments),
    "reconstruct": lambda arguments: import_module("latentae.evaluation.reconstruct_command").main(arguments),
}


def _fail(message: str, code: int, *, alone: bool = False) -> int:
    """Prints an error once, however many processes meet it; ``alone``: this one does, whichever it is."""
    if alone or is_first_process():
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
