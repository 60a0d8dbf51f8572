"""docs/troubleshooting.md names messages, keys and options that exist."""

import ast
import re
from pathlib import Path

import pytest

from latentae.cli import COMMANDS
from latentae.config import load_config
from latentae.config.describe import known_keys

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "| --- |" not in line]
CODE = re.findall(r"`([^`]+)`", TEXT)


def texts_of_the_program() -> str:
    """Returns all texts in the source of latentae, one per line; what a formatted text fills in is a tab."""
    texts = []
    for path in sorted((ROOT / "latentae").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\t" for part in node.values]
                texts.append("".join(str(part) for part in parts))
    return "\n".join(texts)


def test_quoted_messages_are_printed_somewhere() -> None:
    program = texts_of_the_program()
    quoted = re.findall(r"\"([^\"]+)\"", TEXT)
    assert len(quoted) > 20
    assert [message for message in quoted if message not in program] == []


def test_keys_exist_and_take_the_values() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    named = set()
    for code in CODE:
        if code.startswith(("latentae ", "vae.", "--", "#")):
            continue
        for word in re.findall(r"(?:^|\s)([a-z_]+(?:\.[a-z_0-9]+)*)(?==|$)", code):
            if "=" in code or word.partition(".")[0] in sections:
                named.add(word)
    unknown = named - known_keys().keys() - {"metrics.jsonl", "norm_num_groups", "vae"}
    assert unknown == set()
    assert {"optimizer.learning_rate", "model.quantizer.revive_after", "performance"} <= named


@pytest.mark.parametrize("override", [c for c in CODE if re.fullmatch(r"[a-z_.0-9]+=[^ =]*(\{.*\})?", c)])
def test_overrides_can_be_parsed(override: str) -> None:
    """None of them raises a ConfigError."""
    key = override.partition("=")[0]
    if key in known_keys() and not override.endswith(("=N", "=PATH")):
        arguments = [override]
        if key.startswith("model.backbone"):
            load_config("vq_vae", arguments)
        elif key.startswith("loss.kl"):
            load_config("kl_vae", arguments)
        elif key not in ("model.pretrained", "freeze_encoder", "data.alpha"):  # need more than themselves
            load_config("vqgan", arguments)


def test_options_exist() -> None:
    options = {
        option
        for command in COMMANDS.values()
        for action in command.parser()._actions
        for option in action.option_strings
    } | {"--dry-run", "--signal"}
    named = {option for code in CODE for option in re.findall(r"--[a-z_-]+", code)}
    assert named - options == set()
    assert "--half-safe" in named


def test_each_row_has_a_symptom_a_cause_and_a_remedy() -> None:
    assert len(ROWS) > 40
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 3, row
        assert all(cells), row
