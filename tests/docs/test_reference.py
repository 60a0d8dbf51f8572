"""docs/reference.md says what the code says."""

import runpy
from pathlib import Path

from latentae.cli import COMMANDS
from latentae.config import shipped_configs
from latentae.config.describe import known_keys

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference.md"


def test_page_is_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "tools/reference.py"))["reference"]()
    assert PAGE.read_text(encoding="utf-8") == written, "run `make docs`, which writes docs/reference.md"


def test_page_has_every_key_command_and_config() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for key in known_keys():
        assert f"\n| `{key}` |" in text or f"\n### `{key}`\n" in text, key
    for name, command in COMMANDS.items():
        assert f"\n### latentae {name}\n" in text
        for action in command.parser()._actions:
            for option in action.option_strings[-1:]:
                assert option == "--help" or f"| `{option}" in text or action.help == "==SUPPRESS==", option
    for config in shipped_configs():
        assert f"| `{config}` |" in text


def test_every_row_has_as_many_cells_as_its_table() -> None:
    cells = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            cells = None
            continue
        count = line.replace("\\|", "").count("|")
        assert cells in (None, count), line
        cells = count
