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
