import pytest
import torch

from latentae.losses.lecam import LeCAM


def committed(lecam, *micro_batches, accepted=True):
    for real, fake in micro_batches:
        lecam.observe(torch.tensor(real), torch.tensor(fake))
    lecam.commit(accepted)
    return lecam.averages.tolist()


def test_the_averages_start_at_the_first_step_and_follow_once_a_step():
    lecam = LeCAM(0.1, decay=0.75)
    # Two micro-batches make one step, whose means are 2 and −1.
    assert committed(lecam, ([1.0, 1.0], [0.0, -2.0]), ([2.0, 4.0], [-1.0, -1.0])) == [2.0, -1.0]
    assert committed(lecam, ([6.0], [-3.0])) == [3.0, -1.5]
    assert committed(lecam) == [3.0, -1.5]  # a step in which the discriminator did not learn


def test_the_term_by_hand():
    lecam = LeCAM(0.1)
    real, fake = torch.tensor([2.0, -3.0]), torch.tensor([1.0, -4.0])
    assert lecam(real, fake).item() == 0.0
    committed(lecam, ([0.5], [-1.0]))
    # relu(D(x) + 1)² = 9, 0; relu(½ − D(x̂))² = 0, 20.25
    assert lecam(real, fake).item() == pytest.approx(4.5 + 10.125)


def test_the_gradient_reaches_both_sides_and_not_the_averages():
    lecam = LeCAM(0.1).double()
    committed(lecam, ([0.5], [-1.0]))
    logits = [torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda real, fake: lecam(real, fake), logits)
    gradients = torch.autograd.grad(lecam(*logits), logits)
    torch.testing.assert_close(gradients[0], torch.tensor([3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gradients[1], torch.tensor([0.0, -3.5], dtype=torch.float64))


@pytest.mark.parametrize("accepted", [False, torch.tensor(False)])
def test_a_step_that_was_not_made_is_forgotten(accepted):
    lecam = LeCAM(0.1, decay=0.5)
    assert committed(lecam, ([float("nan")], [float("inf")]), accepted=accepted) == [0.0, 0.0]
    assert not lecam.started
    assert committed(lecam, ([1.0], [3.0])) == [1.0, 3.0]
    assert committed(lecam, ([float("nan")], [1.0]), accepted=accepted) == [1.0, 3.0]
    assert committed(lecam, ([2.0], [3.0])) == [1.5, 3.0]


def test_the_state_goes_on_where_it_was():
    first, second = LeCAM(0.1), LeCAM(0.1)
    committed(first, ([1.0], [2.0]))
    second.load_state_dict(first.state_dict())
    assert committed(first, ([5.0], [0.0])) == committed(second, ([5.0], [0.0])) != [5.0, 0.0]


def test_impossible_decay():
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        LeCAM(0.1, decay=1.0)
