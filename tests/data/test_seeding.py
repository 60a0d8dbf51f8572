import pytest
import torch

from latentae.data.seeding import ORDER, SAMPLE, check_seed, generator, torch_generator


def test_streams_are_repeatable_and_differ():
    assert generator(1, SAMPLE, 2, 3).random() == generator(1, SAMPLE, 2, 3).random()
    keys = [
        (1, SAMPLE, 2, 3), (1, SAMPLE, 3, 2), (2, SAMPLE, 2, 3), (1, ORDER, 2, 3),
        (1, ORDER, 2), (1, ORDER, 2, 0), (1, ORDER), (2**40, ORDER, 2),
    ]  # fmt: skip
    assert len({generator(*key).random() for key in keys}) == len(keys)


def test_negative_seeds():
    check_seed(0)
    with pytest.raises(ValueError, match="seed=-1"):
        check_seed(-1)


def test_torchs_generators_are_repeatable_and_differ():
    def draw(*key):
        return torch.rand(1, generator=torch_generator(*key)).item()

    assert draw(1, SAMPLE, 2, 3) == draw(1, SAMPLE, 2, 3)
    keys = [
        (1, SAMPLE, 2),
        (1, SAMPLE, 3),
        (2, SAMPLE, 2),
        (1, ORDER, 2),
        (1, ORDER, 2, 0),
        (2**40, ORDER, 2),
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
