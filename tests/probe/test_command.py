import json

import pytest

from latentae.cli import main
from tests.probe.conftest import tiny_model


@pytest.fixture
def model_folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_probe(model_folder, image_folder, measures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("latentae.probe.probe.open_measures", lambda device, **options: measures)
    out = tmp_path / "probe"
    given = ["probe", f"kl={model_folder}", "--data", str(image_folder), "--out", str(out)]
    given += ["--steps", "2", "--batch-size", "8", "--image-size", "32", "--samples", "4"]
    given += ["--sampling-steps", "2", "--width", "32", "--depth", "1", "--reference-images", "8"]
    assert main(given) == 0
    said = capsys.readouterr()
    assert "48 training images, 12 held out; 2 steps per model" in said.err
    assert "flow loss, relative" in said.out
    assert f"report: {out / 'probe.html'}" in said.out
    assert json.loads((out / "results.json").read_text())["models"]["kl"]["parameters"] > 0

    assert main([*given, "--seed", "1"]) == 2
    assert "was begun with seed 0, and this is 1" in capsys.readouterr().err


def test_mistakes_are_answered(image_folder, tmp_path, capsys, monkeypatch):
    given = ["probe", "nowhere", "--data", str(image_folder), "--out", str(tmp_path / "probe")]
    for more, message in (
        ([], "error: there is no file or folder nowhere"),
        (["--width", "33"], "error: width is 33, but must be a multiple of 32"),
        (["--seconds", "1"], "unrecognized arguments: --seconds"),
        (["--stpes", "1"], "unrecognized arguments: --stpes"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(given) == 2
    assert "a probe runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()


def test_interrupted(model_folder, image_folder, tmp_path, capsys, monkeypatch):
    def interrupt(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentae.probe.probe.probe", interrupt)
    given = ["probe", str(model_folder), "--data", str(image_folder), "--out", str(tmp_path / "probe")]
    assert main(given) == 130
    assert "continues from a state that is at most a minute old" in capsys.readouterr().err
