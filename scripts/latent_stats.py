"""Measures a model's latents and calibrates the model; the same as `latentae stats`.

accelerate launch scripts/latent_stats.py MODEL --data NAME [--out FOLDER]; `--help` lists the options.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["stats", *sys.argv[1:]]))
