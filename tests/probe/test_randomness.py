import torch

from latentae.probe.randomness import generator, number


def test_a_function_of_seed_purpose_and_position():
    def draw(*key):
        return torch.rand(3, generator=generator(*key))

    assert torch.equal(draw(0, "noise", 5), draw(0, "noise", 5))
    others = [draw(1, "noise", 5), draw(0, "times", 5), draw(0, "noise", 6), draw(0, "noise", 5, 0)]
    assert all(not torch.equal(draw(0, "noise", 5), other) for other in others)


def test_a_number_that_a_generator_takes():
    numbers = {number(seed, "picture", place) for seed in range(3) for place in range(3)}
    assert len(numbers) == 9
    assert all(0 <= value < 2**63 for value in numbers)
