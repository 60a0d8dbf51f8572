"""What models' latents can generate: `scripts/probe_diffusion.py MODEL [MODEL ...] --data NAME --out FOLDER`.

`--help` lists the options. Writes probe.html, probe.md and results.json. The same as `latentae probe`.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
