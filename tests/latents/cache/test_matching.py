import pytest

from latentae.latents.cache.folder import read_index
from latentae.latents.cache.matching import check_model
from tests.latents.cache.test_identity import changed
from tests.latents.conftest import make_kl


def test_a_model_and_what_became_of_it(cache, tmp_path):
    settings = read_index(cache).settings
    check_model(settings, make_kl(), cache)
    check_model(settings, changed(make_kl(), "decoder.conv_in.bias"), cache)
    make_kl().save_pretrained(tmp_path / "model")
    check_model(settings, tmp_path / "model", cache)
    with pytest.raises(
        ValueError, match=r"are of another model: of a model in memory \(KLVAE, hash .*encode the"
    ):
        check_model(settings, changed(make_kl(), "encoder.conv_in.bias"), cache)
    with pytest.raises(ValueError, match="this model at another scale or shift"):
        check_model(settings, make_kl(scaling_factor=0.2), cache)
    with pytest.raises(ValueError, match="model is a dict: give a path"):
        check_model(settings, {}, cache)
