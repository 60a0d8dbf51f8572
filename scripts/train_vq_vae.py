"""Trains a VQ-VAE; the same as `latentae train vq_vae`.

accelerate launch scripts/train_vq_vae.py [--config NAME_OR_PATH] [key=value ...]; `--help` lists every key.
Without arguments it runs configs/quickstart_vq.yaml on photographs that come with the installed packages.
"""

import sys

from latentae.cli import train

if __name__ == "__main__":
    sys.exit(train("vq_vae"))
