"""Training, evaluation and export from Python, as a notebook does it."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

import latentae
from latentae import Trainer, api, evaluate, export_autoencoder, load_autoencoder, load_config
from latentae.config import ConfigError
from latentae.config.schema.model import EMAQuantizerConfig
from tests.training.conftest import draw_images, fresh_accelerator  # noqa: F401

# A model of 30 thousand parameters, and no perceptual loss.
TINY = {
    "max_steps": 2,
    "batch_size": 2,
    "trackers": [],
    "cpu_threads": 1,
    "data.image_size": 32,
    "data.num_workers": 0,
    "model": {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "loss.perceptual": None,
}


def test_overrides_are_python_values(tmp_path: Path) -> None:
    config = load_config(
        "quickstart",
        {
            **TINY,
            "data.name": tmp_path,
            "model.quantizer": {"type": "ema", "num_codes": 16},
            "output_dir": "1",
        },
    )
    assert (config.max_steps, config.data.image_size, config.data.name) == (2, 32, str(tmp_path))
    assert config.loss.perceptual is None
    assert config.model.block_out_channels == (8, 16)
    assert isinstance(config.model.quantizer, EMAQuantizerConfig)
    assert config.model.quantizer.num_codes == 16
    assert config.output_dir == "1"


def test_without_arguments_it_is_the_quickstart() -> None:
    assert load_config() == load_config("quickstart")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.image_szie": 3}, "`data.image_szie`; did you mean `data.image_size`"),
        ({"max_steps": "many"}, "`max_steps`"),
        ({"data": None, "data.image_size": 3}, "contradicts the override of `data`"),
    ],
)
def test_a_mistake_is_an_exception(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", overrides)


def test_unknown_config_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean `quickstart`"):
        load_config("quikstart")


def test_notebook_trains_evaluates_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alexnet_trunk: object
) -> None:
    """Two runs of different precision in one process, whose output has no file descriptor."""
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "images")
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    threads = torch.get_num_threads()

    for name, precision in (("kl", "no"), ("bf16", "bf16")):
        changes = {**TINY, "data.name": "images", "output_dir": name, "mixed_precision": precision}
        trainer = Trainer(load_config("quickstart_kl", changes))
        summary = trainer.fit()
        assert summary["step"] == 2
        assert summary == json.loads(Path(name, "summary.json").read_text())
        assert trainer.accelerator.mixed_precision == precision
        assert not Path(name, ".lock").exists()  # another process may have the folder
    assert torch.get_num_threads() == threads
    assert "starting: KLVAE" in output.getvalue()
    assert "Next:" not in output.getvalue()  # there is no command to repeat

    results = evaluate(["kl", Path("bf16")], "images", "report", protocol="crop-32", features=False)
    assert set(results.models) == {"kl", "bf16"}
    psnr = results.models["kl"]["psnr"]
    assert psnr.low <= psnr.value <= psnr.high
    assert Path("report/report.html").is_file()
    with pytest.raises(ValueError, match="holds a report already"):
        evaluate("kl", "images", "report")
    with pytest.raises(TypeError, match="limt"):
        evaluate("kl", "images", "other", limt=3)

    report = export_autoencoder(load_autoencoder("kl"), "vae", format="diffusers")
    assert report.max_error < report.tolerance
    assert load_autoencoder("vae").config.latent_channels == 4


def test_the_same_cell_again_continues_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alexnet_trunk: object
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "images")
    changes = {**TINY, "data.name": "images", "output_dir": "run", "checkpoint_every": 1}
    first = Trainer(load_config("quickstart_kl", changes)).fit()
    again = Trainer(load_config("quickstart_kl", changes))
    assert again.step == 2
    assert again.fit()["psnr"] == first["psnr"]
    longer = Trainer(load_config("run/config.yaml", {"max_steps": 3}))
    assert longer.step == 2
    assert longer.fit()["step"] == 3


def test_public_names_are_there() -> None:
    assert (latentae.load_config, latentae.evaluate) == (api.load_config, api.evaluate)
    for name in latentae.__all__:
        assert getattr(latentae, name) is not None
