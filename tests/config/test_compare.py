from latentae.config import RESUMABLE_KEYS, changed_keys, refused_changes
from latentae.config.compare import NOT_SET
from latentae.config.reflect import known_keys
from tests.config.example import VQVAE, config


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
    assert "loss.adversarial: (not set) → null" in refused_changes(config(), config(VQVAE))


def test_resumable_keys_are_keys_of_the_schema() -> None:
    assert "data.num_workers" in RESUMABLE_KEYS
    assert set(known_keys()) >= RESUMABLE_KEYS
