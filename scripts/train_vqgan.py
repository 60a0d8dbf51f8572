"""Trains a VQGAN; the same as `latentae train vqgan`.

accelerate launch scripts/train_vqgan.py [--config NAME_OR_PATH] [key=value ...]; `--help` lists every key.
Without arguments it runs configs/quickstart.yaml on photographs that come with the installed packages.
"""

import sys

from latentae.cli import train

if __name__ == "__main__":
    sys.exit(train("vqgan"))
