import pytest

from latentae.config import ConfigError
from latentae.training.launcher import apply_launcher_settings
from tests.config.example import config

# What `accelerate launch` sets where nobody has chosen anything.
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_USE_CPU": "False",
}


@pytest.mark.parametrize("environment", [{}, PLAIN, {"ACCELERATE_USE_FSDP": "false"}])
def test_a_plain_launch_changes_nothing(environment):
    assert apply_launcher_settings(config(), environment) == config({"mixed_precision": "no"})
    assert apply_launcher_settings(config({"mixed_precision": "bf16"}), environment).mixed_precision == "bf16"


def test_the_precision_of_the_launcher_is_written_into_the_config():
    told = {**PLAIN, "ACCELERATE_MIXED_PRECISION": "BF16"}
    settled = apply_launcher_settings(config(), told)
    assert settled.mixed_precision == "bf16"
    assert apply_launcher_settings(settled, told) == settled
    assert apply_launcher_settings(settled, PLAIN) == settled


@pytest.mark.parametrize(("told", "precision"), [("no", "auto"), ("bf16", "bf16"), ("fp16", "fp16")])
def test_auto_is_the_precision_of_the_launcher_unless_that_is_no(told, precision):
    environment = {**PLAIN, "ACCELERATE_MIXED_PRECISION": told}
    assert apply_launcher_settings(config({"mixed_precision": "auto"}), environment) == config(
        {"mixed_precision": precision}
    )


def test_numbers_that_both_state_may_agree():
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    settled = apply_launcher_settings(config({"gradient_accumulation_steps": 4, "max_grad_norm": 1}), told)
    assert (settled.gradient_accumulation_steps, settled.max_grad_norm) == (4, 1)
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_GRADIENT_CLIPPING": "auto"}
    settled = apply_launcher_settings(config(), told)
    assert (settled.gradient_accumulation_steps, settled.max_grad_norm) == (1, None)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", ["`gradient_accumulation_steps` is 1", "steps=4"]),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "many", ["`gradient_accumulation_steps` is 1"]),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", ["`max_grad_norm` is null", "max_grad_norm=1.0"]),
        ("ACCELERATE_MIXED_PRECISION", "fp16", ["`mixed_precision` is bf16", "mixed_precision=fp16"]),
        ("ACCELERATE_MIXED_PRECISION", "fp8", ["is fp8"]),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", ["compile=true"]),
        ("ACCELERATE_USE_FSDP", "true", ["FSDP", "DDP"]),
        ("ACCELERATE_USE_FSDP", "1", ["FSDP"]),
        ("ACCELERATE_USE_DEEPSPEED", "true", ["DeepSpeed"]),
        ("ACCELERATE_USE_MEGATRON_LM", "True", ["Megatron-LM"]),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", ["parallelism"]),
    ],
)
def test_what_contradicts_the_config_is_refused(name, value, words):
    with pytest.raises(ConfigError) as caught:
        apply_launcher_settings(config({"mixed_precision": "bf16"}), {**PLAIN, name: value})
    (problem,) = str(caught.value).splitlines()
    assert all(word in problem for word in [name, value, *words])


def test_every_contradiction_is_named():
    with pytest.raises(ConfigError) as caught:
        apply_launcher_settings(
            config(), {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
        )
    assert len(str(caught.value).splitlines()) == 2
