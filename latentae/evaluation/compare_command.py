"""`latentae compare REPORT REPORT`: shows why two evaluations give different numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Shows how the protocols of two reports of `latentae evaluate` differ (images, their preparation, weights,
code), and lists the metrics of the models in both, side by side."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser("latentae compare", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("first", type=Path, metavar="REPORT", help="its folder, or its results.json")
    parser.add_argument("second", type=Path, metavar="REPORT", help="the other one")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stopped:  # argparse has printed the error or the help
        return int(stopped.code or 0)
    # Imported here, so that --help does not wait for them.
    from latentae.evaluation.compare import render
    from latentae.report.results import Results

    try:
        text = render(Results.load(options.first), Results.load(options.second))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0
