"""Encodes a set of images into latents; the same as `latentae encode`.

accelerate launch scripts/encode_dataset.py MODEL --data NAME --out FOLDER; `--help` lists the options.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
