import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentae.config import (
    FAMILIES,
    ConfigError,
    config_from_mapping,
    config_warnings,
    dump_config,
    load_config,
    read_config,
    shipped_configs,
)
from latentae.config import files as module
from latentae.config.describe import member_name, sections_at
from latentae.config.files import read_layers, summary
from tests.config.example import VQVAE, config, mapping


def test_read_config_takes_any_family(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(mapping(VQVAE)), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config(VQVAE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        VQVAE,
        {
            "mixed_precision": "no",
            "output_dir": "2024-01-01",
            "resume": "1e5",
            "data.split": "on",
            "trackers": [],
        },
        {
            "data.image_size": [64, 128],
            "data.downscale": [1, 2.5],
            "optimizer.epsilon": 1e-12,
            "data.name": "ä: #",
        },
        {"model.attention_levels": [False, False, True], "model.quantizer": {"type": "ema", "num_codes": 4}},
    ],
)
def test_dump_and_load_give_the_same_config(changes: dict[str, Any], tmp_path: Path) -> None:
    text = dump_config(config(changes))
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config(changes)
    # a reader with YAML 1.1 must not be led astray either
    assert config_from_mapping(yaml.safe_load(text)) == config(changes)


def test_dump_holds_every_key_in_the_schema_s_order() -> None:
    text = dump_config(config())
    assert text.startswith("output_dir: run\nseed: 0\nmax_steps: 100\n")
    assert "model:\n  class: VQGAN\n  in_channels: 3\n" in text
    assert "  block_out_channels: [32, 64, 64]\n" in text
    assert "  quantizer:\n    type: vector\n    num_codes: 12\n    code_dim: null\n" in text
    assert "!!" not in text
    reordered = dict(reversed(list(mapping().items())))
    assert dump_config(config_from_mapping(reordered)) == text


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_every_shipped_config_loads(name: str) -> None:
    run = read_config(shipped_configs()[name])
    (family,) = [key for key, family in FAMILIES.items() if run.model.class_ in family.classes]
    assert load_config(family, ["--config", name]) == run
    assert config_warnings(run) == []


def test_import_is_fast_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; start = time.process_time(); import latentae.config; "
        "print(time.process_time() - start, sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.5  # of processor time, which other processes do not stretch


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


def test_cycle_of_bases(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "base: b.yaml\n")
    second = write(tmp_path / "b.yaml", "base: a.yaml\n")
    assert error(first) == f"`base` forms a cycle: {first} -> {second} -> {first}; remove one `base`"


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
        ("", ": must contain keys and values (`max_steps: 1000`), but contains null"),
        ("[1, 2]", ": must contain keys and values (`max_steps: 1000`), but contains [1, 2]"),
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


def test_every_model_class_belongs_to_one_family() -> None:
    classes = sorted(name for family in FAMILIES.values() for name in family.classes)
    assert classes == sorted(member_name(section) for section in sections_at(["model"]))


def test_defaults_are_shipped() -> None:
    assert FAMILIES["vqgan"].default_config == "quickstart"
    defaults = {family.default_config for family in FAMILIES.values()} - {None}
    assert defaults <= set(shipped_configs())
