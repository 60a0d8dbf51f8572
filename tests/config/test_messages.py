from typing import Any

import pytest

from latentae.config import ConfigError, config_from_mapping
from latentae.config.messages import closest_keys, unknown_key
from tests.config.example import REMOVED, mapping, problems

QUANTIZERS = "vector, ema, cosine, simvq, ibq, fsq, lfq, bsq, residual, grouped"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_steps", True, "`max_steps` is true; it must be an integer >= 1"),
        ("batch_size", "8", '`batch_size` is "8"; it must be an integer >= 1; write it without quotes'),
        ("batch_size", "inf", '`batch_size` is "inf"; it must be an integer >= 1'),
        ("batch_size", "many", '`batch_size` is "many"; it must be an integer >= 1'),
        ("seed", 1.5, "`seed` is 1.5; it must be an integer >= 0"),
        ("output_dir", 7, """`output_dir` is 7; it must be text; put it in quotes: 'output_dir="7"'"""),
        (
            "mixed_precision",
            "fp8",
            '`mixed_precision` is "fp8"; it must be one of no, bf16, fp16, auto or null',
        ),
        ("decoder", {"upscale": 3}, "`decoder.upscale` is 3; it must be one of 1, 2, 4"),
        ("ema_decay", 1.0, "`ema_decay` is 1.0; it must be a number in [0, 1) or null"),
        (
            "optimizer.learning_rate",
            float("inf"),
            "`optimizer.learning_rate` is .inf; it must be a number > 0",
        ),
        (
            "optimizer.type",
            "adam",
            '`optimizer.type` is "adam"; it must be one of adamw, adamw8bit, muon; did you mean adamw?',
        ),
        ("optimizer.betas", [0.5, 1.5], "`optimizer.betas[1]` is 1.5; it must be a number in [0, 1)"),
        ("data.downscale", [1], "`data.downscale` is [1]; it must be a list of two numbers >= 1 or null"),
        (
            "data.image_size",
            [0, 8],
            "`data.image_size` is [0, 8]; it must be an integer >= 1 or a list of two integers >= 1",
        ),
        ("trackers", ["mail"], '`trackers[0]` is "mail"; it must be one of tensorboard, wandb'),
        (
            "model.quantizer.type",
            "emma",
            f'`model.quantizer.type` is "emma"; it must be one of {QUANTIZERS}; did you mean ema?',
        ),
        ("model.quantizer.type", [1], f"`model.quantizer.type` is [1]; it must be one of {QUANTIZERS}"),
        (
            "model.quantizer.type",
            REMOVED,
            f"`model.quantizer.type` is missing; it must be one of {QUANTIZERS}",
        ),
        (
            "model.class",
            REMOVED,
            "`model.class` is missing; it must be one of KLVAE, Flux2VAE, TinyAutoencoder, VQVAE, VQGAN",
        ),
        ("max_steps", REMOVED, "`max_steps` is missing; it must be an integer >= 1"),
        (
            "model.quantizer.num_codes",
            REMOVED,
            "`model.quantizer.num_codes` is missing; it must be an integer in [2, 1048576]",
        ),
        (
            "loss",
            None,
            "`loss` is null; it must be a section with the keys reconstruction, perceptual, kl, "
            "equivariance, latent_noise, alignment, spectral, teacher, adversarial",
        ),
        ("data.image_szie", 64, "unknown key `data.image_szie`; did you mean `data.image_size`?"),
        (
            "model.quantizer.decay",
            0.9,
            "unknown key `model.quantizer.decay`: it exists only with `type: ema`",
        ),
        ("model.class_", "VQGAN", "unknown key `model.class_`; did you mean `model.class`?"),
    ],
)
def test_message_names_key_value_and_expectation(key: str, value: Any, message: str) -> None:
    assert problems({key: value}) == [message]


def test_text_that_is_no_utf_8_has_a_remedy() -> None:
    (problem,) = problems({"data.name": "caf\udce9"})
    assert problem.startswith('`data.name` is "caf\udce9", whose bytes are not UTF-8')
    assert "link" in problem


def test_every_problem_is_reported_on_a_line_of_its_own() -> None:
    found = problems({"seed": -1, "model.quantizer.num_codes": 1, "discriminator.foo": 3, "data": REMOVED})
    assert [line.split("`")[1] for line in found] == [
        "seed",
        "model.quantizer.num_codes",
        "discriminator.foo",
        "data",
    ]


def test_long_values_are_cut() -> None:
    (found,) = problems({"mixed_precision": "x" * 500})
    assert len(found) < 140
    assert "xxx…" in found


def test_dotted_key_in_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping() | {"data.image_size": 8})
    assert str(caught.value).endswith("in a file write data: {image_size: ...}")


def test_no_pydantic_jargon() -> None:
    found = "\n".join(
        problems({"seed": "x", "model": 3, "loss.adversarial.start_step": None, "data.image_size": {}})
    )
    assert len(found.splitlines()) == 4
    for jargon in (
        "pydantic",
        "https",
        "Input should",
        "type=",
        "VQGANConfig",
        "constrained",
        "discriminator'",
    ):
        assert jargon not in found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("data.image_szie", ["data.image_size"]),
        ("data.image-size", ["data.image_size"]),
        ("image_size", ["data.image_size"]),
        ("lr", ["optimizer.learning_rate", "discriminator.optimizer.learning_rate"]),
        ("n_steps", ["max_steps"]),
        ("num_code", ["model.quantizer.num_codes", "model.quantizer.member.num_codes"]),
        ("num_codes", ["model.quantizer.num_codes", "model.quantizer.member.num_codes"]),
        ("learning_rate", ["optimizer.learning_rate", "discriminator.optimizer.learning_rate"]),
        ("optimizer.lr", ["optimizer.learning_rate"]),
        ("optimiser", ["optimizer"]),
        ("model.type", ["model.class"]),
        ("model.quantizer.class", ["model.quantizer.type"]),
        ("modle.class", ["model.class"]),
        ("nothing_like_it", []),
    ],
)
def test_closest_keys(written: str, meant: list[str]) -> None:
    assert closest_keys(written) == meant


def test_unknown_key_names_what_was_meant_or_the_keys_there() -> None:
    assert unknown_key("image_size").endswith("did you mean `data.image_size`?")
    either = "did you mean `optimizer.learning_rate` or `discriminator.optimizer.learning_rate`?"
    assert unknown_key("lr").endswith(either)
    assert unknown_key("loss.qq").endswith(
        "the keys of `loss` are reconstruction, perceptual, kl, equivariance, latent_noise, alignment, "
        "spectral, teacher, adversarial"
    )
    assert "the keys of `data` are name, split, " in unknown_key("data.image.size")
    for key in ("qq", "qq.ww"):
        assert f"unknown key `{key}`; the top-level keys are output_dir, seed, max_steps," in unknown_key(key)
    assert unknown_key("model.quantizer.decay").endswith("it exists only with `type: ema`")
