import pytest

from latentae.config import (
    BRANCH_FIXED_KEYS,
    DATA_SPELLING_KEYS,
    RESUMABLE_KEYS,
    RunConfig,
    changed_keys,
    refused_changes,
    refused_in_branch,
)
from latentae.config.compare import NOT_SET
from latentae.config.describe import known_keys
from tests.config.example import KLVAE, VQVAE, config


def test_equal_configs_have_no_changes() -> None:
    assert changed_keys(config(), config()) == {}
    assert refused_changes(config(), config()) == []


def test_changes_are_flat_and_plain() -> None:
    new = config({"data.image_size": [64, 128], "seed": 4})
    assert changed_keys(config(), new) == {"seed": (0, 4), "data.image_size": (64, [64, 128])}


def test_only_changes_of_what_is_learned_are_refused() -> None:
    new = config(
        {"max_steps": 200, "trackers": [], "data.num_workers": 0, "data.image_size": 128, "ema_decay": 0.5}
    )
    assert refused_changes(config(), new) == ["ema_decay: null → 0.5", "data.image_size: 64 → 128"]


def test_what_may_change_when_a_run_continues() -> None:
    new = {"output_dir": "b", "max_steps": 5, "resume": "never", "checkpoint_every": 7, "keep_checkpoints": 9}
    new |= {"sample_every": 8, "log_every": 3, "validate_every": 5}
    new |= {"trackers": ["wandb"], "data.num_workers": 0}
    new |= {"data.max_broken": 0, "data.check_images": 0, "data.cache_megabytes": 0}
    assert set(changed_keys(config(), config(new))) == set(new)
    assert refused_changes(config(), config(new)) == []


def test_a_stream_is_divided_by_processes_and_workers() -> None:
    new = {"data.num_workers": 0, "batch_size": 1, "data.cache_megabytes": 0}
    assert refused_changes(config(), config(new)) == []
    streamed = {"data.streaming": True}
    assert refused_changes(config(streamed), config(streamed | new)) == [
        "batch_size: 3 → 1",
        "data.num_workers: 2 → 0",
    ]


def test_other_member_and_null_section() -> None:
    ema = {"type": "ema", "num_codes": 12}
    assert changed_keys(config(), config({"model.quantizer": ema})) == {
        "model.quantizer.type": ("vector", "ema"),
        "model.quantizer.codebook_weight": (2.0, NOT_SET),
        "model.quantizer.legacy_loss_order": (False, NOT_SET),
        "model.quantizer.decay": (NOT_SET, 0.99),
        "model.quantizer.epsilon": (NOT_SET, 1e-5),
    }
    assert "loss.adversarial.start_step: 10 → (not set)" in refused_changes(config(), config(VQVAE))
    assert "loss.adversarial: {...} → null" in refused_changes(config(), config(VQVAE))


def test_resumable_keys_are_keys_of_the_schema() -> None:
    assert "data.num_workers" in RESUMABLE_KEYS
    assert set(known_keys()) >= RESUMABLE_KEYS


# What takes effect from a branch on, though the same run could not go on with it: the trainer builds it from
# the config, and no checkpoint holds it.
_TAKES_EFFECT_IN_BRANCH = {
    *(
        "seed",
        "gradient_accumulation_steps",
        "deterministic",
        "float32_precision",
        "ema_decay",
        "max_grad_norm",
    ),
    *(
        f"model.quantizer.{name}"
        for name in (
            *(
                "commitment_weight",
                "codebook_weight",
                "legacy_loss_order",
                "gradient",
                "revive_after",
                "decay",
            ),
            *(
                "epsilon",
                "entropy_weight",
                "diversity_weight",
                "temperature",
                "entropy_group_size",
                "dropout",
            ),
            "spread_weight",
        )
    ),
    *(
        f"{section}.{name}"
        for section in ("optimizer", "discriminator.optimizer")
        for name in (
            *(
                "learning_rate",
                "betas",
                "weight_decay",
                "epsilon",
                "momentum",
                "update_rms",
                "schedule",
                "warmup_steps",
                "decay_share",
            ),
            "final_scale",
        )
    ),
    *(
        f"loss.{name}"
        for name in (
            *("reconstruction.weight", "reconstruction.epsilon", "reconstruction.learning_rate_scale"),
            *("reconstruction.scale_perceptual", "perceptual", "perceptual.type", "perceptual.trunk"),
            *("perceptual.classifier", "perceptual.classifier_weights", "perceptual.logits_weight"),
            *("perceptual.weight", "perceptual.precision", "kl", "kl.weight", "kl.divergence", "kl.schedule"),
            *(
                "kl.schedule.type",
                "kl.schedule.warmup_steps",
                "kl.schedule.cycle_steps",
                "kl.schedule.cycles",
            ),
            *("kl.schedule.ratio", "kl.free_bits", "kl.free_bits.nats", "kl.free_bits.per", "equivariance"),
            *("equivariance.probability", "equivariance.min_scale", "equivariance.rotate", "latent_noise"),
            *("equivariance.low_resolution_probability", "latent_noise.scale", "alignment.weight"),
            *("alignment.adaptive", "alignment.cosine_margin", "alignment.similarity_margin"),
            "alignment.precision",
            *("spectral.weight", "spectral.factors", "teacher.output_weight", "teacher.latents_weight"),
            *("adversarial.type", "adversarial.weight"),
            *("adversarial.adaptive", "adversarial.min_adaptive_weight", "adversarial.max_adaptive_weight"),
            *("adversarial.start_step", "adversarial.ramp_steps", "adversarial.discriminator_warmup_steps"),
            *("adversarial.lecam", "adversarial.lecam.weight", "adversarial.lecam.decay"),
        )
    ),
    *(
        f"data.color_jitter.{name}"
        for name in ("probability", "permute", "hue", "saturation", "contrast", "brightness")
    ),
    *("discriminator.update_every", "discriminator.augment"),
    *("discriminator.r1", "discriminator.r1.weight", "discriminator.r1.every"),
    *(
        f"data.{name}"
        for name in (
            *("name", "split", "dataset_config", "image_column", "streaming", "shuffle_block", "value_range"),
            *(
                "image_size",
                "resolutions",
                "downscale",
                "random_flip",
                "color_jitter",
                "latents",
                "holdout",
                "max_validation",
            ),
        )
    ),
}


def test_every_key_is_known_to_take_effect_on_a_resume_or_to_be_refused() -> None:
    """A new key must be put into one of the three sets, after a look at what a checkpoint holds of it."""
    keys = {
        path.replace(".member.", ".")
        for path, (key, *_) in known_keys().items()
        if not key.is_section or "null" in key.type  # a section that may be missing is a setting of its own
    }
    sets = (RESUMABLE_KEYS, BRANCH_FIXED_KEYS, _TAKES_EFFECT_IN_BRANCH)
    assert set().union(*sets) == keys
    assert sum(map(len, sets)) == len(keys)
    assert set(known_keys()) >= DATA_SPELLING_KEYS


def test_what_a_branch_cannot_change() -> None:
    new = {"optimizer.weight_decay": 0.5, "optimizer.betas": [0.1, 0.2], "seed": 5, "ema_decay": 0.9}
    assert refused_in_branch(config(), config(new)) == []
    new |= {"model.latent_channels": 6, "model.quantizer.init": "uniform"}
    assert refused_in_branch(config(), config(new)) == [
        "model.latent_channels: 5 → 6",
        "model.quantizer.init: data → uniform",
    ]
    assert "optimizer.type: adamw → adamw8bit" in refused_in_branch(
        config(), config({"optimizer.type": "adamw8bit"})
    )
    assert "loss.adversarial: {...} → null" in refused_in_branch(config(), config(VQVAE))
    member = {"type": "grouped", "groups": 1, "member": {"type": "vector", "num_codes": 12}}
    other = {**member, "member": {"type": "vector", "num_codes": 14}}
    assert refused_in_branch(config({"model.quantizer": member}), config({"model.quantizer": other})) == [
        "model.quantizer.member.num_codes: 12 → 14"
    ]


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        ({"type": "l1"}, {"type": "charbonnier"}, False),
        ({"type": "l1"}, {"type": "gaussian", "learned": False}, False),
        (
            {"type": "gaussian", "learned": False},
            {"type": "gaussian", "learned": False, "log_variance": 1},
            False,
        ),
        ({"type": "l1"}, {"type": "gaussian"}, True),
        ({"type": "gaussian"}, {"type": "gaussian", "learned": False}, True),
        ({"type": "gaussian"}, {"type": "gaussian", "log_variance": 1}, True),
        ({"type": "gaussian"}, {"type": "gaussian", "learning_rate_scale": 7}, False),
    ],
)
def test_a_learned_scale_belongs_to_the_checkpoint(old: dict, new: dict, refused: bool) -> None:
    configs = (config({"loss.reconstruction": reconstruction}) for reconstruction in (old, new))
    assert bool(refused_in_branch(*configs)) is refused


def test_a_term_that_wraps_the_autoencoder_may_join_only_where_something_else_does() -> None:
    spectral = {"loss.spectral": {"factors": [2]}}
    assert refused_in_branch(config(), config(spectral)) == ["loss.spectral: null → {...}"]
    learned = {"loss.reconstruction": {"type": "laplace"}}
    assert refused_in_branch(config(learned), config(learned | spectral)) == []


def test_what_a_teacher_s_checkpoint_fixes() -> None:
    def taught(**keys: object) -> RunConfig:
        kl = {**KLVAE, "model.pretrained": "model", "freeze_encoder": True, "data.image_size": 256}
        return config({**kl, "loss.teacher": {"model": "a", **keys}})

    images, features = taught(), taught(features_weight=0.5)
    assert refused_in_branch(images, taught(output_weight=3.0, levels=[1])) == []
    assert refused_in_branch(features, taught(features_weight=0.1)) == []
    assert refused_in_branch(images, features) == ["loss.teacher.features_weight: 0.0 → 0.5"]
    levels = taught(features_weight=0.5, levels=[1])
    assert refused_in_branch(features, levels) == ["loss.teacher.levels: [0, 1] → [1]"]
    assert refused_in_branch(images, taught(model="b")) == ["loss.teacher.model: a → b"]


def test_precision_of_a_resume_and_of_a_branch() -> None:
    no, bf16, fp16, auto = (config({"mixed_precision": name}) for name in ("no", "bf16", "fp16", "auto"))
    assert refused_changes(no, bf16) == ["mixed_precision: 'no' → bf16"]
    assert refused_changes(config(), bf16) == []  # a run that did not record what its launcher decided
    assert refused_changes(no, auto) == refused_changes(fp16, auto) == []  # auto keeps what is recorded
    assert refused_in_branch(no, bf16) == refused_in_branch(fp16, no) == []
    assert refused_in_branch(bf16, fp16) == ["mixed_precision: bf16 → fp16"]  # there is no loss scale to load
