import pytest

from latentae.config import load_config
from latentae.training.rehearsal import Stage, _costliest_step, measure_memory, measure_time
from latentae.training.trainer import Trainer


@pytest.fixture
def rehearsing(tiny):
    def build(*overrides):
        return Trainer(tiny(*overrides), rehearsal=True)

    return build


def test_stages_and_memory(rehearsing):
    """The tiny run has the discriminator learn from step 1 and the autoencoder from it from step 2."""
    trainer = rehearsing()
    batches = trainer.batches()
    use = measure_memory(trainer, batches)
    parameters = [
        sum(parameter.numel() for parameter in learner.module.parameters())
        for learner in trainer.networks.learners
    ]
    assert use.gradients == 4 * sum(parameters)
    assert use.optimizer >= 8 * sum(parameters)
    assert use.optimizer < 8 * sum(parameters) * 1.1  # and a counter for each tensor
    assert 4 * parameters[0] <= use.average < use.weights < 4 * sum(parameters) + 1000
    assert use.losses == 2 * 4 * (
        2_470_848 + 6
    )  # LPIPS on AlexNet, its shift and scale; once to train, once to measure
    first_layer = 2 * 8 * 32 * 32 * 4  # what two images are after the encoder's first convolution
    assert 20 * first_layer < use.activations < 200 * first_layer

    stages = measure_time(trainer, batches)
    assert [(stage.first, stage.last) for stage in stages] == [(0, 1), (1, 2), (2, 6)]
    assert all(0 < stage.seconds < 10 for stage in stages)


def test_more_images_need_more_activations(rehearsing):
    uses = []
    for size in (2, 4):
        trainer = rehearsing(f"batch_size={size}")
        uses.append(measure_memory(trainer, trainer.batches()))
    assert uses[1].weights == uses[0].weights
    assert 1.7 < uses[1].activations / uses[0].activations < 2.05


def test_memory_is_for_the_largest_of_several_sizes(rehearsing):
    several = ["data.resolutions=[[32, 32], [40, 48], [48, 32]]", "data.image_size=32"]
    uses = []
    for overrides in (several, ["data.image_size=[40, 48]"]):
        trainer = rehearsing(*overrides)
        uses.append(measure_memory(trainer, trainer.batches()).activations)
    assert uses[0] == uses[1]


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ([], 2),
        (["loss.adversarial.start_step=100"], 5),
        (["loss.adversarial.start_step=100", "loss.adversarial.discriminator_warmup_steps=96"], 4),
        (["discriminator.update_every=2"], 3),
        (["discriminator.r1={weight: 1.0, every: 3}"], 4),
    ],
)
def test_the_costliest_step(rehearsing, overrides, step):
    """Of steps 0 to 5: the discriminator learns from step 1 on, R1 is in its first update and each k-th."""
    assert _costliest_step(rehearsing(*overrides)) == step


def test_without_a_discriminator_all_steps_are_one_stage(tiny):
    changes = ["model.class=VQVAE", "loss.adversarial=null", "discriminator=null"]
    trainer = Trainer(load_config("vq_vae", ["--config", str(tiny.file), *changes]), rehearsal=True)
    assert _costliest_step(trainer) == 0
    (stage,) = measure_time(trainer, trainer.batches())
    assert stage == Stage(0, 6, stage.seconds)
