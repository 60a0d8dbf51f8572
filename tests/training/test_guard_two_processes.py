"""A loss that is not finite on one rank: no rank makes the update, and that rank's images are named."""

from tests.processes import launch

WORKER = """
import sys
from pathlib import Path
import torch
from latentae import distributed
from latentae.config import load_config
from latentae.training.trainer import Trainer

trainer = Trainer(load_config("vqgan", sys.argv[1:]))
loss = trainer.networks.step.objective.reconstruction

def poisoned(reconstruction, images):
    bad = distributed.rank() == 1 and trainer.step + 1 == 3
    return loss(reconstruction, images) * (float("nan") if bad else 1.0)

trainer.networks.step.objective.reconstruction = poisoned
optimizer_step = trainer.optimizer_step

def watched(*arguments):
    if trainer.step + 1 == 3:
        before = [p.detach().clone() for p in trainer.networks.autoencoder.parameters()]
        names = []
        watch = trainer.guard.watch
        trainer.guard.watch = lambda losses, files: (names.extend(files), watch(losses, files))
        optimizer_step(*arguments)
        assert all(map(torch.equal, before, trainer.networks.autoencoder.parameters()))
        Path(f"{sys.argv[0]}.{distributed.rank()}").write_text(", ".join(names))
    else:
        optimizer_step(*arguments)
    weights = trainer.networks.autoencoder.state_dict().values()
    everywhere = distributed.all_gather_concat(torch.cat([w.double().flatten() for w in weights])[None])
    assert torch.equal(everywhere[0], everywhere[1])

trainer.optimizer_step = watched
trainer.fit()
"""


def test_all_ranks_skip_what_one_of_them_cannot_use(tiny, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    output = launch(worker, 2, "--config", str(tiny.file), "max_steps=5").stdout
    files = [(tmp_path / f"worker.py.{rank}").read_text() for rank in (0, 1)]
    said = next(line for line in output.splitlines() if line.startswith("step 3 skipped"))
    assert said.endswith(f"its images: {files[1]}")
    assert files[0] != files[1]
