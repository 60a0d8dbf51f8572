from typing import Any

import pytest
import yaml

from latentae.config import ConfigError
from latentae.config.yaml_text import ConfigDumper, parse_yaml, show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        (".inf", ".inf"),
        ('"8"', "8"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "f, line 4: the key `c` appears twice"),
        ("a: 1\n2: 3", "f, line 1: the key `2` is not text"),
        ("? [1]\n: 2", "f, line 1: found unhashable key"),
        ("a: !!int x", "f: invalid literal for int() with base 10: 'x'"),
        ("a: !!int [1]", "f, line 1: expected a scalar node, but found sequence"),
    ],
)
def test_unreadable_text(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert str(caught.value) == message


def test_python_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_yaml("!!python/object/apply:os.getcwd []", "f")


def test_no_line_for_a_single_argument() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("{a: 1, a: 2}", "`x`", is_file=False)
    assert str(caught.value) == "`x`: the key `a` appears twice"


@pytest.mark.parametrize("text", ["no", "1e5", "10", "2024-01-01", "1:30", "null", "", "true", "0o7", ".inf"])
def test_text_comes_back_as_text_under_either_yaml(text: str) -> None:
    dumped = yaml.dump({"key": text}, Dumper=ConfigDumper)
    assert parse_yaml(dumped, "x") == {"key": text}
    assert yaml.safe_load(dumped) == {"key": text}


def test_show_fits_on_a_line() -> None:
    assert show(None) == "null"
    assert show("8") == "'8'"
    assert show(True) == "true"
    assert show(1e-5) == "1.0e-05"
    assert show((1, 2.5)) == "[1, 2.5]"
    assert show({"b": [1], "a": "x y"}) == "{b: [1], a: x y}"
    assert show(list(range(200))).count("\n") == 0


def test_values_of_keys_for_text_are_text() -> None:
    text = "a: 001\nb: {a: 1e3, c: true, d: 7}\ne: null\nf: [1]\ng: &g {a: 1, g: *g}\n"
    is_text = {"a", "b.a", "b.c", "e", "f", "g.a"}.__contains__
    parsed = parse_yaml(text, "x", is_text=is_text)
    del parsed["g"]
    assert parsed == {"a": "001", "b": {"a": "1e3", "c": "true", "d": 7}, "e": None, "f": [1]}
    assert parse_yaml("{a: 010}", "x", is_text=is_text, path="b") == {"a": "010"}
