"""Measures models side by side: `scripts/evaluate.py MODEL [MODEL ...] --data NAME --out FOLDER ...`.

`--help` lists the options. Writes results.json, results.md and report.html. The same as `latentae evaluate`.
"""

import sys

from latentae.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
