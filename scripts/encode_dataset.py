"""Stores an image set's latents: `encode_dataset.py MODEL --data NAME --out FOLDER ...`.

`--help` lists the options. Several devices: `accelerate launch`. The same as `latentae encode`.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
