"""The competitors of bench_race.py: our configs under our Trainer, and the programs of peers_training.py.

All have the backbone, the batch size and the images of ``configs/quickstart.yaml``, and draw their first
weights from the same seed in the same order.

What our configs have and the peers' programs do not all have, peers get too. Their weights are averaged as
ours, and raw or averaged ones are measured, whichever reconstruct better. With a learning rate that is not
the published one, they have a warm-up and a cosine that ends with the run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from peers import packaged_lpips
from peers_training import PEERS, Peer
from torch import Tensor, nn

from latentae import build
from latentae.config import RunConfig, load_config
from latentae.data import Batch, ImageDataset, open_source, training_loader
from latentae.evaluation.metrics import psnr
from latentae.training.codebook import MOST_BATCHES, start_codebook
from latentae.training.ema import EMA
from latentae.training.log import Meter
from latentae.training.networks import seed_everything
from latentae.training.trainer import Trainer
from latentae.training.update import LearningRate

# In configs/quickstart.yaml the discriminator counts after this share of the run; before it learns by itself.
ADVERSARIAL_SHARE, WARMUP_SHARE = 0.65, 0.05
_AVERAGE_DECAY = 0.999  # as in configs/quickstart.yaml, for the peers
_PEERS_SCHEDULE: dict[str, Any] = {"schedule": "cosine", "final_scale": 0.05}
_PEERS_WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class Ours:
    """A config of this project.

    Attributes:
        family, config: what `latentae train` is called with.
        changes: key=value; ``{0.5}`` stands for half of the run's steps.
    """

    family: str
    config: str
    changes: tuple[str, ...] = ()


_NUM_CODES = 1024
_COLOURS = "{probability: 0.5, hue: 0.5, saturation: 0.4, contrast: 0.2, brightness: 0.1}"  # the quickstart's
_CODES = f"model.quantizer.num_codes={_NUM_CODES}"

OURS: dict[str, Ours] = {
    "kl": Ours("kl_vae", "quickstart_kl"),
    "vq-ema": Ours("vq_vae", "quickstart_vq", (_CODES,)),
    "vq-simvq": Ours("vq_vae", "quickstart_vq", ("model.quantizer.type=simvq", _CODES)),
    "vq-fsq": Ours("vq_vae", "quickstart_vq", ("model.quantizer={type: fsq, levels: [8, 5, 5, 5]}",)),
    "vqgan": Ours("vqgan", "quickstart", (_CODES,)),
}
"""Name -> config as shipped, with as many codes as the peers."""


def _changed(base: str, *changes: str) -> Ours:
    ours = OURS[base]
    return Ours(ours.family, ours.config, (*ours.changes, *changes))


# Settings of the peers' programs, without which the rungs of a ladder lead to our KL-VAE under AdamW.
_RUNGS = {
    "posterior from -6": "loss.kl.initial_log_variance=null",
    "average": "ema_decay=null",
    "cosine": "optimizer={schedule: constant, warmup_steps: 0}",
    "AlexNet": "loss.perceptual.trunk=vgg",
}
_LADDER = {
    f"kl, plain {' + '.join(['AdamW', *list(_RUNGS)[:rung]])}": _changed(
        "kl", "optimizer.type=adamw", *list(_RUNGS.values())[rung:]
    )
    for rung in range(len(_RUNGS))
}
"""Each rung has one setting more of ours than the one before. `kl, AdamW` is the last."""

ABLATIONS: dict[str, Ours] = {
    **_LADDER,
    "kl, posterior from 0": _changed("kl", "loss.kl.initial_log_variance=null"),
    "kl, posterior from -3": _changed("kl", "loss.kl.initial_log_variance=-3"),
    "kl, posterior from -10": _changed("kl", "loss.kl.initial_log_variance=-10"),
    "kl, L2": _changed("kl", "loss.reconstruction.type=l2"),
    "kl, LPIPS-VGG": _changed("kl", "loss.perceptual.trunk=vgg"),
    "kl, LPIPS 0.25": _changed("kl", "loss.perceptual.weight=0.25"),
    "kl, LPIPS 1": _changed("kl", "loss.perceptual.weight=1.0"),
    "kl, LPIPS 2": _changed("kl", "loss.perceptual.weight=2.0"),
    "kl, AdamW": _changed("kl", "optimizer.type=adamw"),
    "kl, AdamW 3e-4": _changed("kl", "optimizer.type=adamw", "optimizer.learning_rate=3.0e-4"),
    "kl, AdamW 3e-3": _changed("kl", "optimizer.type=adamw", "optimizer.learning_rate=3.0e-3"),
    "kl, update 0.2": _changed("kl", "optimizer.update_rms=0.2"),
    "kl, update 1.5": _changed("kl", "optimizer.update_rms=1.5"),
    "kl, momentum 0.9": _changed("kl", "optimizer.momentum=0.9"),
    "kl, rate 2e-3": _changed("kl", "optimizer.learning_rate=2.0e-3"),
    "kl, rate 5e-4": _changed("kl", "optimizer.learning_rate=5.0e-4"),
    "kl, constant rate": _changed("kl", "optimizer.schedule=constant"),
    "kl, wsd": _changed("kl", "optimizer.schedule=wsd", "optimizer.decay_share=0.4"),
    "kl, final rate 0": _changed("kl", "optimizer.final_scale=0.0"),
    "kl, betas 0.5 0.9": _changed("kl", "optimizer.betas=[0.5, 0.9]"),
    "kl, betas 0.9 0.95": _changed("kl", "optimizer.betas=[0.9, 0.95]"),
    "kl, betas 0.9 0.999": _changed("kl", "optimizer.betas=[0.9, 0.999]"),
    "kl, no average": _changed("kl", "ema_decay=null"),
    "kl, average 0.99": _changed("kl", "ema_decay=0.99"),
    "kl, average 0.98": _changed("kl", "ema_decay=0.98"),
    "kl, warm-up 10": _changed("kl", "optimizer.warmup_steps=10"),
    "kl, warm-up 150": _changed("kl", "optimizer.warmup_steps=150"),
    "kl, weight decay 0.01": _changed("kl", "optimizer.weight_decay=0.01"),
    "kl, batch 4": _changed("kl", "batch_size=4"),
    "kl, batch 16": _changed("kl", "batch_size=16"),
    "kl, crops 1 to 4": _changed("kl", "data.downscale=[1.0, 4.0]"),
    "kl, other colours": _changed("kl", f"data.color_jitter={_COLOURS}"),
    "kl, bfloat16": _changed("kl", "mixed_precision=bf16"),
    "kl, no clipping": _changed("kl", "max_grad_norm=null"),
    "kl, stock blocks": _changed("kl", "performance=off"),
    "vq-ema, AdamW": _changed("vq-ema", "optimizer.type=adamw"),
    "vq-ema, LPIPS-VGG": _changed("vq-ema", "loss.perceptual.trunk=vgg"),
    "vq-ema, uniform codes": _changed("vq-ema", "model.quantizer.init=uniform"),
    "vq-ema, decay 0.95": _changed("vq-ema", "model.quantizer.decay=0.95"),
    "vq-ema, revive after 5": _changed("vq-ema", "model.quantizer.revive_after=5"),
    "vq-ema, rotation": _changed("vq-ema", "model.quantizer.gradient=rotation"),
    "vq-ema, commitment 1": _changed("vq-ema", "model.quantizer.commitment_weight=1.0"),
    "vqgan, weight 0.2": _changed("vqgan", "loss.adversarial.weight=0.2"),
    "vqgan, weight 0.8": _changed("vqgan", "loss.adversarial.weight=0.8"),
    "vqgan, start at 0": _changed(
        "vqgan", "loss.adversarial.start_step=0", "loss.adversarial.discriminator_warmup_steps=0"
    ),
    "vqgan, start at 0.85": _changed("vqgan", "loss.adversarial.start_step={0.85}"),
    "vqgan, LPIPS-VGG": _changed("vqgan", "loss.perceptual.trunk=vgg"),
    "vqgan, AdamW": _changed("vqgan", "optimizer.type=adamw"),
    "vqgan, Muon discriminator": _changed("vqgan", "discriminator.optimizer.type=muon"),
    "vqgan, wavelet": _changed("vqgan", "discriminator.type=wavelet"),
    "vqgan, frozen AlexNet": _changed(
        "vqgan", "discriminator.type=frozen_features", "discriminator.network=alex"
    ),
    "vqgan, frozen VGG16": _changed(
        "vqgan", "discriminator.type=frozen_features", "discriminator.network=vgg16"
    ),
}
"""Name -> config with one change."""

COMPETITORS = [*PEERS, *OURS, *ABLATIONS]


class Reconstructor(Protocol):
    """Anything that can be measured."""

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns reconstructions of images [B, 3, H, W] in [-1, 1], and the codes [B, h, w] or None."""

    def num_codes(self) -> int | None:
        """Returns the size of the codebook, or None."""


class Competitor(Reconstructor, Protocol):
    """A model that learns in the race.

    Attributes:
        averaged: whether it reconstructs by the averaged weights.
    """

    learning_rate: float
    averaged: bool

    def begin(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Prepares for the first step, perhaps with some of the images; yields all batches again."""

    def step(self, batch: Batch) -> None:
        """Learns from a batch."""

    def choose_weights(self, images: Tensor) -> None:
        """Decides by the mean PSNR of images whether raw or averaged weights reconstruct, if both exist."""

    def save(self, folder: Path) -> None:
        """Writes all that a continued run needs."""

    def load(self, folder: Path) -> None:
        """Reads what ``save`` wrote."""


class OurCompetitor:
    """A config under the real Trainer, without its folder, log and checkpoints.

    Args:
        config: the run's.
    """

    def __init__(self, config: RunConfig) -> None:
        self.trainer = Trainer(config, rehearsal=True)
        self.learning_rate = config.optimizer.learning_rate
        self.averaged = config.ema_decay is not None

    def begin(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        networks = self.trainer.networks
        if networks.quantizer is None:
            return batches
        generator = self.trainer.randomness().generator("codebook")
        return start_codebook(networks.autoencoder, batches, generator, self.trainer.device)

    def step(self, batch: Batch) -> None:
        # A meter of its own: nothing reads the log's.
        self.trainer.optimizer_step(iter([batch]), Meter())

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.trainer.networks.ema.model(images)
        return output.sample, output.indices

    def choose_weights(self, images: Tensor) -> None:
        """Keeps what the config says."""

    def num_codes(self) -> int | None:
        return getattr(self.trainer.networks.quantizer, "num_codes", None)

    def save(self, folder: Path) -> None:
        self.trainer.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.trainer.accelerator.load_state(str(folder))
        self.trainer.step = int(yaml.safe_load((folder / "step").read_text()))


class PeerCompetitor:
    """One of the other programs.

    Args:
        program: with its networks.
    """

    def __init__(self, program: Peer) -> None:
        self.program = program
        self.learning_rate = program.learning_rate
        self.average = EMA(program.autoencoder, _AVERAGE_DECAY)
        self.averaged = False

    def begin(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def step(self, batch: Batch) -> None:
        self.program.step(batch["images"])
        self.average.update(self.program.autoencoder)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.averaged:
            return self.program.reconstruct(self.average.model, images)
        self.program.autoencoder.eval()
        result = self.program.reconstruct(self.program.autoencoder, images)
        self.program.autoencoder.train()
        return result

    def choose_weights(self, images: Tensor) -> None:
        means = {}
        for self.averaged in (False, True):
            reconstruction, _ = self.reconstruct(images)
            means[self.averaged] = psnr(reconstruction, images).mean()
        self.averaged = bool(means[True] > means[False])

    def num_codes(self) -> int | None:
        return getattr(getattr(self.program.autoencoder, "quantize", None), "num_codes", None)

    def save(self, folder: Path) -> None:
        state = {"program": self.program.state_dict(), "average": self.average.state_dict()}
        torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        self.program.load_state_dict(state["program"])
        self.average.load_state_dict(state["average"])


@dataclass(frozen=True)
class Setting:
    """The data of a race, and changes to all of its configs.

    Attributes:
        data: folder of the training images, or ``photos``.
        changes: further key=value of all configs.
    """

    data: str
    changes: tuple[str, ...] = ()

    def config(self, ours: Ours, steps: int, seed: int, rate: float | None = None) -> RunConfig:
        """Returns the config of a run of so many steps."""
        shared = [
            f"data.name={self.data}",
            "data.downscale=null",
            "data.color_jitter=null",
            "data.holdout=0.001",
            "cpu_threads=1",
            "trackers=[]",
            f"max_steps={steps}",
            f"seed={seed}",
            f"output_dir=race-{seed}",  # a rehearsal neither reads nor writes it
        ]
        if rate is not None:
            shared.append(f"optimizer.learning_rate={rate}")
        if ours.family == "vqgan":
            shared += [
                f"loss.adversarial.start_step={int(ADVERSARIAL_SHARE * steps)}",
                f"loss.adversarial.discriminator_warmup_steps={int(WARMUP_SHARE * steps)}",
            ]
        own = [_insert_steps(change, steps) for change in ours.changes]
        return load_config(ours.family, ["--config", ours.config, *shared, *self.changes, *own])


def _insert_steps(change: str, steps: int) -> str:
    """Replaces ``{0.5}`` by this share of the steps. Other braces are YAML's."""
    return re.sub(r"\{([\d.]+)\}", lambda share: str(int(float(share[1]) * steps)), change)


def create(
    name: str, setting: Setting, *, steps: int, seed: int, rate: float | None = None
) -> tuple[Competitor, RunConfig]:
    """Returns a competitor with fresh networks, and the config whose images it learns from.

    Args:
        name: one of ``COMPETITORS``.
        rate: learning rate, with a peer's also its schedule; None: the published or shipped ones.
    """
    if name not in PEERS:
        config = setting.config(OURS.get(name) or ABLATIONS[name], steps, seed, rate)
        return OurCompetitor(config), config
    program = PEERS[name]
    quantizer = yaml.safe_dump(
        {**program.QUANTIZER, "num_codes": _NUM_CODES, "revive_after": None}, default_flow_style=True
    )
    codes = () if program.KL else (f"model.quantizer={quantizer.strip()}",)
    changes = (f"model.latent_channels={program.LATENT_CHANNELS}", *codes)
    base = OURS["kl" if program.KL else "vq-ema"]
    config = setting.config(Ours(base.family, base.config, changes), steps, seed)
    seed_everything(seed)
    autoencoder = build.build_autoencoder(config.model, max(config.data.height_and_width))
    discriminator = build.build_discriminator(setting.config(OURS["vqgan"], steps, seed))
    assert isinstance(discriminator, nn.Module)
    lpips = packaged_lpips(build.build_lpips("vgg"))
    falling = LearningRate(1.0, last_step=steps, warmup_steps=int(_PEERS_WARMUP * steps), **_PEERS_SCHEDULE)
    peer = program(
        autoencoder,
        discriminator,
        lpips,
        batch_size=config.batch_size,
        learning_rate=rate,
        schedule=None if rate is None else falling.at,
    )
    return PeerCompetitor(peer), config


def open_batches(config: RunConfig, start: int = 0) -> Iterator[Batch]:
    """Yields a run's batches from a step on: the same for all configs of equal data, batch size and seed."""
    train, _ = build.build_datasets(build.build_sources(config.data), config.data, 3, config.seed)
    loader = training_loader(train, batch_size=config.batch_size, seed=config.seed, start_batch=start)
    ahead: Sequence[Batch] = []
    batches: Iterator[Batch] = iter(loader)
    if start == 0:  # decoded before the clock of ``begin`` starts
        ahead = list(itertools.islice(batches, MOST_BATCHES))
    return itertools.chain(ahead, batches)


def open_validation(config: RunConfig, folder: str | None) -> ImageDataset:
    """Returns the images that are measured: of a folder, or those that the config's data hold out."""
    source: Any = build.build_sources(config.data).validation if folder is None else open_source(folder)
    return ImageDataset(source, build.CenterCrop(config.data.image_size, downscale=None), channels=3, seed=0)
