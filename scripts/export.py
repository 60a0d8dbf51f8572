"""Writes a model for others: `scripts/export.py RUN_OR_MODEL --format diffusers|ldm|comfyui --out PATH ...`.

`--help` lists the options. What was written is reopened and compared with the model before it takes its
place.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
