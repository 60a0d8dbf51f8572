import pytest

from latentae.config import FAMILIES, help_text
from latentae.config.reflect import known_keys, walk
from latentae.config.schema import AdamWConfig


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_key_has_a_line_with_type_and_default(family: str) -> None:
    lines = help_text(family, width=200).splitlines()
    entries = dict(line.split(maxsplit=1) for line in lines if line.startswith("  ") and line[2] != " ")
    assert {key.path for key in walk(classes=FAMILIES[family].classes)} <= set(entries)
    assert entries["max_steps"] == "an integer >= 1; required"
    assert entries["optimizer.betas"] == "a list of two numbers in [0, 1); default [0.5, 0.9]"
    if family != "kl_vae":
        assert entries["model.quantizer.decay"] == "a number in (0, 1); default 0.99 (only with type: ema)"
    assert entries["loss.perceptual"] == "section or null; default null"


def test_every_key_has_a_doc() -> None:
    assert [key.path for key in walk() if len(key.doc) < 10] == []


def test_model_class_is_the_family_s() -> None:
    assert "VQGAN; required" in help_text("vqgan", width=200)
    assert "one of KLVAE, VQVAE, VQGAN; required" not in help_text("vqgan", width=200)


def test_shipped_configs_come_with_their_first_comment() -> None:
    (line,) = [
        line for line in help_text("vqgan", width=200).splitlines() if line.startswith("  quickstart ")
    ]
    assert len(line.split()) > 6


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_keep_to_the_width_and_columns(width: int) -> None:
    lines = help_text("vqgan", width).splitlines()
    column = max(map(len, known_keys())) + 4
    assert max(map(len, lines)) <= max(width, column + 18)
    keys = lines[lines.index("Keys:") + 1 :]
    for line in keys:
        indent = len(line) - len(line.lstrip())
        assert indent in (0, 2, 6, column), line
        if indent == 2:
            assert line[column - 1] == " "
            assert line[column] != " "


def test_help_can_be_printed_anywhere() -> None:
    assert help_text("vqgan").isascii()


def test_docs_come_from_the_schema() -> None:
    doc = AdamWConfig.model_fields["epsilon"].description
    assert doc is not None
    assert doc.removesuffix(".") in help_text("vqgan", width=200)
