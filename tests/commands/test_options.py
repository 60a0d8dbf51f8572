"""The options of the commands, and what is known of them before torch is loaded."""

import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
import torch

from latentae import KLVAE, cli
from latentae.commands.options import Command, open_device
from latentae.console import FAMILIES, run
from latentae.data.decode import MAX_PIXELS
from latentae.evaluation.evaluate import Request
from latentae.evaluation.measuring import Settings
from latentae.export import export_autoencoder
from latentae.latents.cache import encode_dataset
from latentae.latents.inspection.inspect import inspect as inspect_latents
from latentae.latents.recalibrate import MOST_VIEWS, recalibrate
from latentae.models.checkpoints import families
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.request import ProbeRequest
from tests.processes import ROOT, environment

NAMES = sorted(cli.COMMANDS)
REQUIRED = {
    "stats": "MODEL --data D",
    "encode": "MODEL --data D --out O",
    "inspect": "MODEL --data D --out O",
    "evaluate": "MODEL --data D --out O",
    "compare": "A B",
    "probe": "MODEL --data D --out O",
    "export": "MODEL --format ldm --out O",
    "reconstruct": "IMAGE OUT --model M",
    "demo": "MODEL",
}


def parse(name, *arguments):
    return vars(cli.COMMANDS[name].parser().parse_args([*REQUIRED[name].split(), *arguments]))


def test_help_and_mistakes_are_answered_before_torch_loads():
    code = f"""
import sys
from latentae.cli import main
for name in {NAMES}:
    assert main([name, "--help"]) == 0
    assert main([name, "--nonsense"]) == 2
assert main({["export", "run", "--format", "comfyui", "--out", "a"]}) == 2
assert main({["encode", "model", "--data", "photos", "--out", "a", "--batch-size", "0"]}) == 2
assert not {{"torch", "diffusers", "numpy"}} & set(sys.modules)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.returncode == 0, result.stderr
    assert [result.stdout.count(f"usage: latentae {name} ") for name in NAMES] == [1] * len(NAMES)
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())  # no list of all options
    assert "--format comfyui needs --family, one of sd1" in result.stderr
    assert "--batch-size: '0' is not a whole number of 1 or more" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_example_of_a_command_can_be_parsed(name):
    parser = cli.COMMANDS[name].parser()
    program, command, *arguments = cli.COMMANDS[name].example.split()
    assert (program, command) == ("latentae", name)
    assert vars(parser.parse_args(arguments))
    assert f"\n  {cli.COMMANDS[name].example}\n" in parser.format_help()


def defaults_of(target):
    """Returns the defaults of a function's or a dataclass's arguments, by name."""
    if inspect.isclass(target):
        return {field.name: field.default for field in fields(target) if field.default is not MISSING}
    return {parameter.name: parameter.default for parameter in inspect.signature(target).parameters.values()}


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("stats", [recalibrate]),
        ("encode", [encode_dataset]),
        ("inspect", [inspect_latents]),
        ("evaluate", [Request, Settings]),
        ("probe", [ProbeRequest, DenoiserSize]),
    ],
)
def test_defaults_are_those_of_the_library(name, targets):
    options = parse(name)
    expected = {key: value for target in targets for key, value in defaults_of(target).items()}
    # The parser gives what can be repeated as lists, and requires `out` and `data`.
    lists = {"families", "groups", "weights"}
    shared = (options.keys() & expected.keys()) - {*lists, "out", "data", "model"}
    assert len(shared) >= 8
    assert {key: options[key] for key in shared} == {key: expected[key] for key in shared}


def choices_of(name, option):
    (action,) = [a for a in cli.COMMANDS[name].parser()._actions if option in a.option_strings]
    return ", ".join(action.choices)


def test_choices_are_those_of_the_library(tmp_path):
    model = KLVAE(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), sample_size=8)
    for option in ("sizes", "dtype", "precision", "broken"):
        choices = choices_of("encode", f"--{option}")
        with pytest.raises(ValueError, match=f"{option} is 'x', but must be one of {choices}$"):
            encode_dataset(model, "photos", tmp_path / "out", **{option: "x"})
    for option in ("format", "dtype"):
        choices = choices_of("export", f"--{option}")
        with pytest.raises(ValueError, match=f"{option} is 'x', but must be one of {choices}$"):
            export_autoencoder(model, tmp_path / "out", **{"format": "ldm", option: "x"})
    choices = choices_of("evaluate", "--precision")
    with pytest.raises(ValueError, match=f"precision is 'x', but must be one of {choices}$"):
        Request(["a"], "photos", tmp_path / "out", precision="x").check()
    assert tuple(families.FAMILIES) == FAMILIES


def help_of(name, option):
    """What `--help` says of an option, in one line."""
    text = re.sub(r"\s+", " ", cli.COMMANDS[name].parser().format_help().split("options:", 1)[1])
    return re.search(rf"{option} .*?(?= --[a-z]|$)", text)[0]


def test_help_shows_defaults_where_there_are_any():
    assert "(default: 16)" in help_of("encode", "--batch-size")
    assert "(default: 0)" in help_of("encode", "--seed")
    assert "(default: float16)" in help_of("encode", "--dtype")
    assert "(default: 0.001)" in help_of("probe", "--learning-rate")
    for name, option in (("encode", "--flips"), ("encode", "--limit"), ("evaluate", "--no-features")):
        assert "default" not in help_of(name, option)
    assert str(MOST_VIEWS) in help_of("stats", "--max-images")
    assert str(MAX_PIXELS) in help_of("stats", "--max-pixels")
    for name in NAMES:
        text = cli.COMMANDS[name].parser().format_help()
        assert not re.search(r"default: (None|True|False|\[|=)", text)


@pytest.mark.parametrize("name", ["stats", "encode", "inspect", "evaluate", "probe"])
def test_options_on_reading(name):
    given = ["--image-column", "png", "--value-range", "-1", "2.5", "--max-pixels", "9", "--split", "dev"]
    expected = {"data": "D", "split": "dev", "image_column": "png", "dataset_config": None}
    expected |= {"value_range": (-1.0, 2.5), "max_pixels": 9}
    assert expected.items() <= parse(name, *given).items()


@pytest.mark.parametrize("name", ["encode", "inspect", "export"])
def test_the_family_of_a_model(name, capsys):
    assert parse(name)["family"] is None
    assert [parse(name, "--family", family)["family"] for family in FAMILIES] == list(FAMILIES)
    with pytest.raises(SystemExit):
        parse(name, "--family", "sd9")
    assert "sd9" in capsys.readouterr().err


def test_the_families_of_several_models():
    assert parse("probe")["families"] == []
    assert parse("probe", "--family", "a=sd1", "--family", "flux")["families"] == ["a=sd1", "flux"]


def test_a_mistake_is_told_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["encode"]) == 2
    assert capsys.readouterr() == ("", "")


def test_the_command_runs_what_was_parsed(capsys):
    def fail(word, count):
        raise KeyboardInterrupt if count > 1 else ValueError(f"{word} is wrong")

    def add_options(parser):
        parser.add_argument("word")
        parser.add_number("--count", "a number", default=1)

    command = Command("try", fail, add_options, "Tries it.", "latentae try", interrupted="nothing is lost")
    assert command.run(["it"]) == 2
    assert command.run(["it", "--count", "2"]) == 130
    assert capsys.readouterr().err == "error: it is wrong\ninterrupted; nothing is lost\n"


def test_a_process_without_a_device_says_so_itself(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")

    def command():
        with open_device():
            raise AssertionError

    assert run(command) == 2
    assert "2 or more processes, but 1 CUDA device(s)" in capsys.readouterr().err
