from pathlib import Path

import pytest

from latentae.config import ConfigError, shipped_configs
from latentae.config import shipped as module
from latentae.config.shipped import read_layers, summary


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def error(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_layers(str(path))
    return str(caught.value)


def test_every_shipped_config_says_what_it_is() -> None:
    assert "quickstart" in shipped_configs()
    for name, path in shipped_configs().items():
        assert len(summary(path)) > 20, name
        assert summary(path).endswith("."), name


def test_configs_of_an_installed_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_checkout = write(tmp_path / "configs/b.yaml", "seed: 1")
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "latentae")
    assert shipped_configs() == {"b": in_checkout}
    in_package = write(tmp_path / "latentae/configs/a.yaml", "seed: 2")
    assert shipped_configs() == {"a": in_package}


def test_summary_is_the_first_comment(tmp_path: Path) -> None:
    assert summary(write(tmp_path / "a.yaml", "# Does this.\n# And that.\n")) == "Does this."
    assert summary(write(tmp_path / "b.yaml", "seed: 1\n# no\n")) == ""


def test_base_is_laid_below(tmp_path: Path) -> None:
    write(tmp_path / "lowest.yaml", "seed: 1\nmax_steps: 1\ndata: {name: a, split: b}\n")
    write(tmp_path / "sub/middle.yaml", "base: ../lowest.yaml\nmax_steps: 2\n")
    top = write(tmp_path / "top.yaml", "base: sub/middle.yaml\ndata: {split: c}\n")
    assert read_layers(str(top)) == {"seed": 1, "max_steps": 2, "data": {"name": "a", "split": "c"}}


def test_base_may_be_a_shipped_config(tmp_path: Path) -> None:
    top = write(tmp_path / "top.yaml", "base: quickstart\nmax_steps: 7\n")
    assert read_layers(str(top)) == read_layers("quickstart") | {"max_steps": 7}


def test_circle_of_bases(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "base: b.yaml\n")
    second = write(tmp_path / "b.yaml", "base: a.yaml\n")
    assert error(first) == f"`base` runs in a circle: {first} -> {second} -> {first}; take one `base` out"


def test_missing_config_lists_the_shipped_ones(tmp_path: Path) -> None:
    assert error("quickstrat").startswith(
        "config `quickstrat` was not found; did you mean `quickstart`? Shipped"
    )
    names = ", ".join(shipped_configs())
    assert error("x.yaml").endswith(
        f"give the path of a YAML file or a shipped config. Shipped configs: {names}"
    )
    assert error(tmp_path).startswith(f"config `{tmp_path}` is a folder")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", ": must hold keys and values (`max_steps: 1000`), but holds null"),
        ("[1, 2]", ": must hold keys and values (`max_steps: 1000`), but holds [1, 2]"),
        ("base: 5", ": `base` is 5; it must be the name of a shipped config or a path"),
        ("seed: 1\nseed: 2", ", line 2: the key `seed` appears twice"),
    ],
)
def test_unusable_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "a.yaml", text)
    assert error(path) == f"{path}{complaint}"


def test_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert error(tmp_path / "a.yaml").startswith(f"{tmp_path / 'a.yaml'}: cannot be read: ")


def test_numbers_are_text_where_a_key_holds_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "output_dir: 001\nmax_steps: 010\ndata: {name: 1e3, split: true}\n")
    assert read_layers(str(path)) == {
        "output_dir": "001",
        "max_steps": 10,
        "data": {"name": "1e3", "split": "true"},
    }


def test_a_name_that_is_too_long_for_the_file_system() -> None:
    assert "cannot be opened: File name too long" in error("a" * 300)
