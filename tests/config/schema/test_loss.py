from latentae.config import LossConfig


def test_terms_are_left_out_by_default() -> None:
    loss = LossConfig.model_validate({"reconstruction": {"type": "l1"}})
    assert (loss.reconstruction.weight, loss.perceptual, loss.adversarial) == (1.0, None, None)


def test_defaults_of_the_terms() -> None:
    loss = LossConfig.model_validate(
        {
            "reconstruction": {"type": "l2"},
            "perceptual": {"type": "lpips"},
            "adversarial": {"type": "hinge", "start_step": 0},
        }
    )
    assert loss.perceptual is not None
    assert (loss.perceptual.trunk, loss.perceptual.weight) == ("vgg", 1.0)
    assert loss.adversarial is not None
    assert (loss.adversarial.type, loss.adversarial.start_step) == ("hinge", 0)
