import torch

from latentae.training.randomness import StepRandomness


def test_ranks_take_slices_of_what_one_rank_draws():
    one = StepRandomness(seed=3, step=7)
    two = [StepRandomness(seed=3, step=7, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(
        torch.cat([r.normal("posterior", 2, 4, 3) for r in two]), one.normal("posterior", 4, 4, 3)
    )
    assert torch.equal(torch.cat([r.uniform("crop", 3, 2) for r in two]), one.uniform("crop", 6, 2))


def test_each_purpose_step_and_micro_batch_draws_its_own():
    draws = [
        StepRandomness(seed=0, step=1).uniform("a", 1, 4),
        StepRandomness(seed=0, step=1).uniform("b", 1, 4),
        StepRandomness(seed=0, step=2).uniform("a", 1, 4),
        StepRandomness(seed=1, step=1).uniform("a", 1, 4),
        StepRandomness(seed=0, step=1, micro_batch=1).uniform("a", 1, 4),
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    assert torch.equal(draws[0], StepRandomness(seed=0, step=1).uniform("a", 1, 4))


def test_an_image_s_numbers_depend_on_its_place_alone():
    """Not on the images beside it, and not on how many processes there are."""
    whole = StepRandomness(seed=3, step=7).normal("posterior", 6, 4, 5, 5)
    alone = [
        StepRandomness(3, 7, rank=place, world_size=6).normal("posterior", 1, 4, 5, 5) for place in range(6)
    ]
    assert torch.equal(torch.cat(alone), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 6


def test_a_rank_draws_for_its_own_images_alone(monkeypatch):
    """As many numbers on each of 64 ranks as on one."""
    drawn = []
    fill = torch.Tensor.normal_
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda own, **options: (drawn.append(own.numel()), fill(own, **options))[1]
    )
    for world in (1, 8, 64):
        drawn.clear()
        StepRandomness(0, 1, rank=world - 1, world_size=world).normal("posterior", 4, 2, 3)
        assert drawn == [6] * 4


def test_the_seeds_of_images_are_those_of_splitmix64(monkeypatch):
    """The first numbers that its reference program gives for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    monkeypatch.setattr(StepRandomness, "_seed", lambda self, purpose: 1234567)
    seeds = [StepRandomness(0, 0, rank=rank, world_size=2)._image_seeds("posterior", 2) for rank in range(2)]
    assert [*seeds[0], *seeds[1]] == [number >> 1 for number in expected]


def test_the_numbers_are_spread_as_they_should_be():
    randomness = StepRandomness(seed=1, step=2)
    normal = randomness.normal("noise", 64, 2, 16, 16).double()
    assert abs(normal.mean()) < 0.02
    assert abs(normal.var() - 1) < 0.03
    # Of two images the numbers at one place have nothing to do with each other: 1/√512 is 0.044.
    assert torch.corrcoef(normal.flatten(1)).triu(1).abs().max() < 0.25
    uniform = randomness.uniform("draws", 4096, 1).double()
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(uniform.var() - 1 / 12) < 0.005
    assert randomness.normal("strength", 3).shape == (3,)


def test_for_a_gpu_the_numbers_lie_in_pinned_memory(monkeypatch):
    """The copy to a GPU then waits for nothing."""
    asked, copied = [], []
    empty, to = torch.empty, torch.Tensor.to
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *shape, pin_memory, **options: (asked.append(pin_memory), empty(*shape, **options))[1],
    )
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda numbers, device, **options: (copied.append((device, options)), to(numbers, "cpu"))[1],
    )
    for device in ("cpu", "cuda"):
        StepRandomness(0, 0, device=device).normal("posterior", 2, 3)
    assert asked == [False, True]
    assert copied == [("cpu", {"non_blocking": False}), ("cuda", {"non_blocking": True})]
