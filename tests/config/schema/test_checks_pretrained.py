import pytest

from latentae.config import ConfigError
from tests.config.example import config


def test_a_frozen_encoder_must_have_learned_something() -> None:
    with pytest.raises(ConfigError) as caught:
        config({"freeze_encoder": True})
    assert str(caught.value) == (
        "`freeze_encoder` is true, and `model.pretrained` is null: the encoder would stay as random as it "
        "starts; name a trained model there, or use freeze_encoder=false"
    )
    assert config({"freeze_encoder": True, "model.pretrained": "some/model"}).freeze_encoder
