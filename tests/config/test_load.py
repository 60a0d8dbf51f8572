import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentae.config import (
    FAMILIES,
    ConfigError,
    VQGANConfig,
    VQVAEConfig,
    config_from_mapping,
    config_warnings,
    dump_config,
    load_config,
    read_config,
    shipped_configs,
)
from tests.config.example import VQVAE, config, mapping


def error(family: str, *argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(family, argv)
    return str(caught.value)


def test_default_config_with_overrides() -> None:
    run = load_config("vqgan", ["data.image_size=128", "optimizer.learning_rate=1e-4", "mixed_precision=no"])
    assert isinstance(run.model, VQGANConfig)
    assert (run.data.image_size, run.optimizer.learning_rate, run.mixed_precision) == (128, 1e-4, "no")
    assert run.model == load_config("vqgan", ["--config", "quickstart"]).model


def test_other_type_keeps_the_keys_that_both_have() -> None:
    before = load_config("vqgan", []).model.quantizer
    after = load_config("vqgan", ["model.quantizer.type=ema"]).model.quantizer
    assert (after.type, after.num_codes, after.revive_after) == ("ema", before.num_codes, before.revive_after)


def test_one_family_s_config_becomes_another_s() -> None:
    argv = ["--config", "quickstart", "model.class=VQVAE", "loss.adversarial=null", "discriminator=null"]
    run = load_config("vq_vae", argv)
    assert isinstance(run.model, VQVAEConfig)
    assert run.model.block_out_channels == load_config("vqgan", []).model.block_out_channels


def test_class_of_another_family_says_which_script() -> None:
    assert error("vq_vae", "--config", "quickstart") == (
        "`model.class` is VQGAN, which train_vq_vae.py does not train (it trains VQVAE); use train_vqgan.py"
    )
    assert (
        error("vqgan", "model.class=Foo") == '`model.class` is "Foo"; it must be one of KLVAE, VQVAE, VQGAN'
    )


def test_every_family_has_a_config_of_its_own() -> None:
    for name, family in FAMILIES.items():
        assert load_config(name, []).model.class_ in family.classes
    assert error("vqwhat") == "unknown family `vqwhat`; there are kl_vae, vq_vae, vqgan"


def test_help_prints_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config("vqgan", ["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: train_vqgan.py ")


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
