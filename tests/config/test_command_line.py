import pytest

from latentae.config import (
    FAMILIES,
    ConfigError,
    VQGANConfig,
    VQVAEConfig,
    help_text,
    load_config,
    shipped_configs,
)
from latentae.config.command_line import Arguments, parse_arguments
from latentae.config.describe import known_keys, takes_text, walk
from latentae.config.schema.run import AdamWConfig


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv)
    return str(caught.value).splitlines()


def test_overrides_are_nested_and_parsed_as_yaml() -> None:
    argv = ["--config", "a.yaml", "data.image_size=64", "data.downscale=[1, 2.5]", "loss.adversarial=null"]
    assert parse_arguments([*argv, "mixed_precision=no", "optimizer.learning_rate=1e-4"]) == Arguments(
        config="a.yaml",
        overrides={
            "data": {"image_size": 64, "downscale": [1, 2.5]},
            "loss": {"adversarial": None},
            "mixed_precision": "no",
            "optimizer": {"learning_rate": 1e-4},
        },
        help=False,
    )


def test_value_may_hold_an_equals_sign() -> None:
    assert parse_arguments(["output_dir=run=2", "--config=x=y.yaml"]) == Arguments(
        config="x=y.yaml", overrides={"output_dir": "run=2"}, help=False
    )


def test_later_value_of_a_key_counts() -> None:
    assert parse_arguments(["max_steps=1", "max_steps=2"]).overrides == {"max_steps": 2}


def test_section_overrides_add_up_in_either_order() -> None:
    expected = {"loss": {"perceptual": {"type": "lpips", "weight": 1, "trunk": "vgg"}}}
    whole, single = "loss.perceptual={type: lpips, weight: 1}", "loss.perceptual.trunk=vgg"
    assert parse_arguments([whole, single]).overrides == expected
    assert parse_arguments([single, whole]).overrides == expected


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_wins_over_mistakes(flag: str) -> None:
    assert parse_arguments(["--what", flag, "x=1"]).help


@pytest.mark.parametrize(
    "written",
    [
        "--max_steps=5",
        "--max-steps=5",
        "--max-steps 5",
        "-max_steps 5",
        "max_steps 5",
        "max_steps = 5",
        "max_steps =5",
    ],
)
def test_other_ways_to_give_a_value_are_answered_with_the_right_one(written: str) -> None:
    assert problems(*written.split()) == [f"`{written}`: values are given as key=value; write max_steps=5"]


def test_flags_without_value_and_misplaced_keys() -> None:
    assert problems("--deterministic", "batch_size=1")[0].endswith("write deterministic=true")
    assert problems("--image_size", "64")[0].endswith("write data.image_size=64")
    assert problems("--lr", "1e-3")[0].endswith("write optimizer.learning_rate=1e-3")
    assert problems("max_steps")[0].endswith("write max_steps=...")
    assert problems("--seed", "-1")[0].endswith("write seed=-1")


def test_every_wrong_argument_is_reported() -> None:
    assert problems("--batch-size", "4", "--epochs", "3", "=5", "data.image_szie=64") == [
        "`--batch-size 4`: values are given as key=value; write batch_size=4",
        "`--epochs 3` is neither --config nor key=value; --help lists the keys",
        "`=5` is neither --config nor key=value; --help lists the keys",
        "unknown key `data.image_szie`; did you mean `data.image_size`?",
    ]


def test_config_without_its_flag() -> None:
    assert problems("quickstart") == ["`quickstart`: to use a config, write --config quickstart"]
    assert problems("mine.yaml") == ["`mine.yaml`: to use a config, write --config mine.yaml"]
    assert problems("--confg", "mine") == ["`--confg mine`: did you mean --config?"]
    assert problems("--dry_run") == ["`--dry_run`: did you mean --dry-run?"]


def test_config_flag_needs_one_name() -> None:
    for argv in (["--config"], ["--config="], ["--config", "--seed"]):
        assert problems(*argv)[0].startswith("--config needs a path or a shipped config: ")
    assert problems("--config", "a", "--config=b") == ["--config is given 2 times (a, b); give it once"]


def test_override_without_value() -> None:
    assert problems("max_grad_norm=") == [
        "`max_grad_norm=` has no value after the =; for no value write max_grad_norm=null"
    ]


def test_list_that_the_shell_split() -> None:
    (problem,) = problems("data.downscale=[1,", "2]", "seed=1")
    assert problem.endswith("quote an argument that has spaces: 'data.downscale=[1, 2]'")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "*.png",
            "photos#1",
            "a #1",
            "#1",
            "a: b",
            "{a,b}.tar",
            "[x].png",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "-",
        ),
        *(
            "001",
            "7",
            "1e3",
            "1.0",
            "2024-01-01",
            "no",
            "on",
            "true",
            "False",
            "~/a",
            "nullable",
            '"a" b',
            "'",
        ),
    ],
)
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert parse_arguments([f"data.name={text}"]).overrides == {"data": {"name": text}}
    # Within a section the rules of YAML hold, but a number or a boolean is text where a key holds text.
    if not set(text) & set("#:{}[]&!%@`'\"*-") or text == "2024-01-01":
        assert parse_arguments([f"data={{name: {text}}}"]).overrides == {"data": {"name": text}}


def test_null_and_quotes_around_text() -> None:
    for null in ("null", "~", "Null", "NULL"):
        assert parse_arguments([f"model.pretrained={null}"]).overrides == {"model": {"pretrained": None}}
    for quoted in ('"null"', "'null'"):
        assert parse_arguments([f"model.pretrained={quoted}"]).overrides == {"model": {"pretrained": "null"}}
    assert parse_arguments(['data.name="a b"']).overrides == {"data": {"name": "a b"}}
    assert parse_arguments(["mixed_precision=no"]).overrides == {"mixed_precision": "no"}
    assert parse_arguments(["seed=007"]).overrides == {"seed": 7}


@pytest.mark.parametrize("path", [path for path in known_keys() if takes_text(path)])
def test_every_key_for_text_takes_text(path: str) -> None:
    *sections, name = path.split(".")
    overrides = parse_arguments([f"{path}=001"]).overrides
    for section in sections:
        overrides = overrides[section]
    assert overrides == {name: "001"}


def test_overrides_that_contradict_each_other() -> None:
    assert problems("loss.adversarial=null", "loss.adversarial.weight=1") == [
        "`loss.adversarial.weight=1` contradicts the override of `loss.adversarial`; drop one of them"
    ]
    assert problems("loss.adversarial.weight=1", "loss.adversarial=null") == [
        "`loss.adversarial=null` contradicts the overrides of keys in `loss.adversarial`; drop one of them"
    ]


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
    assert "one of KLVAE, Flux2VAE, VQVAE, VQGAN; required" not in help_text("vqgan", width=200)


def test_shipped_configs_come_with_their_first_comment() -> None:
    (line,) = [
        line for line in help_text("vqgan", width=200).splitlines() if line.startswith("  quickstart ")
    ]
    assert len(line.split()) > 6


def test_help_of_a_family_lists_the_configs_that_it_trains() -> None:
    texts = {family: help_text(family, width=200) for family in FAMILIES}
    listed = {
        family: [name for name in shipped_configs() if f"\n  {name} " in text]
        for family, text in texts.items()
    }
    assert listed["vq_vae"] == ["quickstart_vq", "vqvae_2017"]
    assert "kl_f8" in listed["kl_vae"]
    assert "kl_f8" not in listed["vqgan"]
    assert sorted(name for names in listed.values() for name in names) == list(shipped_configs())


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


def load_error(family: str, *argv: str) -> str:
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
    assert load_error("vq_vae", "--config", "quickstart") == (
        "`model.class` is VQGAN, which train_vq_vae.py does not train (it trains VQVAE); use train_vqgan.py"
    )
    assert (
        load_error("vqgan", "model.class=Foo")
        == '`model.class` is "Foo"; it must be one of KLVAE, Flux2VAE, TinyAutoencoder, VQVAE, VQGAN'
    )


def test_every_family_has_a_config_of_its_own() -> None:
    for name, family in FAMILIES.items():
        assert load_config(name, []).model.class_ in family.classes
    assert load_error("vqwhat") == "unknown family `vqwhat`; there are kl_vae, vq_vae, vqgan"


def test_help_prints_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config("vqgan", ["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: train_vqgan.py ")
