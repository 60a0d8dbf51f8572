"""Measures and calibrates a model's latents: `latent_stats.py MODEL --data NAME [--out FOLDER]`.

`--help` lists the options. The same as `latentae stats`.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["stats", *sys.argv[1:]]))
