"""The command line: `latentae train FAMILY ...` and the other commands. The files in scripts/ call it.

Nothing heavy is imported before a config or the options of a command have been read, so that a mistake in
them is answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from latentae.commands.conversions import ENCODE, EXPORT, RECONSTRUCT, STATS
from latentae.commands.demo import DEMO
from latentae.commands.reports import COMPARE, EVALUATE, INSPECT, PROBE
from latentae.config import FAMILIES, ConfigError, RunConfig, load_config
from latentae.console import CommandError, errors_as, is_first_process, output_pipe_is_closed, run
from latentae.training.launcher import apply_launcher_settings
from latentae.training.run_folder import RankError, RunError, RunFolder, describe_pretrained
from latentae.training.summary import describe, finished_summary

COMMANDS = {
    command.name: command
    for command in (STATS, ENCODE, INSPECT, EVALUATE, COMPARE, PROBE, EXPORT, RECONSTRUCT, DEMO)
}
_DRY_RUN = "--dry-run"
_LESS_MEMORY = (
    "lower batch_size (and raise gradient_accumulation_steps as much), lower data.image_size, or use "
    "performance=memory or mixed_precision=bf16"
)
_USAGE = f"""\
usage: latentae train FAMILY [--config NAME_OR_PATH] [--dry-run] [key=value ...]
       latentae stats MODEL --data NAME [--out FOLDER] ...
       latentae encode MODEL --data NAME --out FOLDER ...
       latentae inspect MODEL --data NAME --out FOLDER ...
       latentae evaluate MODEL [MODEL ...] --data NAME --out FOLDER ...
       latentae compare REPORT REPORT
       latentae probe MODEL [MODEL ...] --data NAME --out FOLDER ...
       latentae export RUN_OR_MODEL --format FORMAT --out PATH ...
       latentae reconstruct IMAGE_OR_FOLDER OUT --model MODEL ...
       latentae demo MODEL [MODEL ...] ...

  train        train an autoencoder of a FAMILY: {" | ".join(FAMILIES)}
  stats        measure the scale of a model's latents, and write a model that records it
  encode       store the latents of images, for the training of a denoiser
  inspect      draw the latent space of a model
  evaluate     compare models on the same images
  compare      explain how two reports of evaluate differ
  probe        train the same small denoiser on the latents of each model
  export       write a model for other programs
  reconstruct  write images beside their reconstructions
  demo         serve a page on this machine to try models

First try: latentae train vqgan --config quickstart
`latentae train FAMILY --help` lists every key, `latentae COMMAND --help` every option of another command.
To train on several devices: `accelerate launch -m latentae.cli train ...`
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `latentae` command and returns its exit code; see ``console.run``."""
    return run(partial(_dispatch, list(sys.argv[1:] if arguments is None else arguments)))


def _dispatch(arguments: list[str]) -> int:
    if arguments in ([], ["-h"], ["--help"]):
        print(_USAGE)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "train":
        if rest in (["-h"], ["--help"]):
            print(_USAGE)
            return 0
        family = rest[0].replace("-", "_") if rest else ""
        if family not in FAMILIES:
            choices = ", ".join(FAMILIES)
            raise CommandError(
                f"`latentae train` needs a family, one of {choices}; got {family or 'none'}", 2
            )
        return train(family, rest[1:])
    if name not in COMMANDS:
        raise CommandError(f"unknown command {name!r}\n{_USAGE}", 2)
    return COMMANDS[name].run(rest)


def train(family: str, arguments: Sequence[str] | None = None) -> int:
    """Trains an autoencoder of a family and returns the exit code.

    0: done, or stopped on request; 1: failed; 2: input that cannot be used; 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run(
        partial(_train, family, given),
        interrupted="the same command continues from the last checkpoint",
        less_memory=_LESS_MEMORY,
        bad_input=(ConfigError,),
    )


def _train(family: str, given: list[str]) -> None:
    # Read the config, and check the run's folder.
    dry = _DRY_RUN in given
    arguments = [argument for argument in given if argument != _DRY_RUN]
    config = apply_launcher_settings(load_config(family, arguments, describe_pretrained))
    folder = RunFolder(Path(config.output_dir))
    folder.check(config)
    if dry:
        _dry_run(config)
        return

    # A complete run is described, and not touched.
    finished = finished_summary(folder, config) if folder.resume_of(config) == "auto" else None
    if finished is not None:
        if is_first_process():
            print(f"The run in {folder.root} is complete. {describe(folder, finished)}")
        return

    # Train. Torch is loaded only now.
    from latentae.training.signals import RunStopped
    from latentae.training.trainer import Trainer
    from latentae.weights import WeightsNotFoundError

    with errors_as(2, ValueError, WeightsNotFoundError):
        trainer = Trainer(config)
    try:
        with errors_as(1, RunError), errors_as(1, RankError, alone=True):
            trainer.fit()
    except RunStopped as stop:  # on request, and nothing is lost: not a failure to a job scheduler
        if is_first_process():  # if nobody reads the output any more, somebody may still read the errors
            print(stop, file=sys.stderr if output_pipe_is_closed() else sys.stdout)


def _dry_run(config: RunConfig) -> None:
    from latentae.training.dry_run import dry_run
    from latentae.weights import WeightsNotFoundError

    with errors_as(1, RunError), errors_as(2, ValueError, WeightsNotFoundError):
        report = dry_run(config)
    if is_first_process():
        print(report)


if __name__ == "__main__":
    sys.exit(main())
