import pytest

from latentae.config.suggest import closest_keys, unknown_key


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("data.image_szie", ["data.image_size"]),
        ("data.image-size", ["data.image_size"]),
        ("image_size", ["data.image_size"]),
        ("data.image.size", ["data.image_size"]),
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


def test_messages() -> None:
    assert unknown_key("image_size") == "unknown key `image_size`; did you mean `data.image_size`?"
    assert (
        "did you mean `optimizer.learning_rate` or `discriminator.optimizer.learning_rate`?"
        in unknown_key("lr")
    )
    assert unknown_key("loss.qq") == (
        "unknown key `loss.qq`; the keys of `loss` are reconstruction, perceptual, kl, equivariance, "
        "latent_noise, alignment, spectral, adversarial"
    )
    assert unknown_key("qq").startswith("unknown key `qq`; the keys there are output_dir, seed, max_steps,")
    assert unknown_key("qq.ww") == "unknown key `qq.ww`; --help lists the keys"
    assert unknown_key("model.quantizer.decay").endswith("it exists only with `type: ema`")
