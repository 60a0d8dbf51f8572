"""Shows what a model's latent space looks like: `inspect_latents.py MODEL --data NAME --out FOLDER`.

`--help` lists the options. Writes inspect.html, inspect.json and figures. The same as `latentae inspect`.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
