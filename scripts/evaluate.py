"""Measures models side by side on the same images; the same as `latentae evaluate`.

accelerate launch scripts/evaluate.py MODEL [MODEL ...] --data NAME --out FOLDER; `--help` lists the options.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
