"""Trains a KL-VAE; the same as `latentae train kl_vae`.

accelerate launch scripts/train_kl_vae.py [--config NAME_OR_PATH] [key=value ...]; `--help` lists every key.
Without arguments it runs configs/quickstart_kl.yaml on photographs that come with the installed packages.
"""

import sys

from latentae.cli import train

if __name__ == "__main__":
    sys.exit(train("kl_vae"))
