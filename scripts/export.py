"""Writes a model in a format that other programs read; the same as `latentae export`.

scripts/export.py RUN_OR_MODEL --format FORMAT --out PATH; `--help` lists the options.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
