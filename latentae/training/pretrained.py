"""The model that a run starts from: loaded before the first step, recorded in every checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from latentae import build, distributed
from latentae.config import RunConfig
from latentae.files import write_json
from latentae.models import KLVAE, VQVAE, Autoencoder
from latentae.models.adapting import (
    AdaptedTensor,
    describe_decoder,
    latent_differences,
    latent_settings,
    load_what_fits,
)
from latentae.training.ema import EMA

RECORD = "pretrained.json"
"""The record's name in a run's folder."""


class Pretrained:
    """A run's pretrained model.

    Its record says what it was (``pretrained``, as in the config; ``class``; ``sha256`` of its weights),
    which settings belong to it (``settings``: scale, shift and the like) and which tensors had to be adapted
    (``adapted``). The record is part of every checkpoint, so a resume does not need the model itself.

    Args:
        config: of the run, with ``model.pretrained``.
        autoencoder: what learns, unwrapped.
        ema: its average.
    """

    def __init__(self, config: RunConfig, autoencoder: Autoencoder, ema: EMA[Autoencoder]) -> None:
        self.config = config
        self.autoencoder = autoencoder
        self.ema = ema
        self.record: dict[str, Any] = {}

    def take_up(self) -> None:
        """Loads the pretrained weights into the autoencoder and its average; every rank must call it.

        Raises:
            ValueError: there is no such model, it does not fit, or the config would change latents that
                ``freeze_encoder`` keeps.
        """
        place = self.config.model.pretrained
        assert place is not None
        try:
            model = self._open(place)
            self._check_decoder(model)
            adapted = load_what_fits(self.autoencoder, model, alpha=self.config.data.alpha)
            self._remember(place, model, adapted)
        except ValueError as error:
            raise ValueError(f"`model.pretrained` is {place}, which cannot be used: {error}") from error
        own = self.autoencoder
        if isinstance(own, KLVAE) and self.config.loss.kl is None and not self.config.freeze_encoder:
            own.pin_posterior()
        if isinstance(own, VQVAE):
            own.quantize.weights_changed()
        self._apply_settings()
        self.ema.model.load_state_dict(own.state_dict())

    def check_moved(self) -> None:
        """Checks that a model under a new name has the same weights as in the checkpoint.

        A model under the old name is not opened: a resume does not need it. Every rank must call this.

        Raises:
            ValueError: it is another model.
        """
        place, before = self.config.model.pretrained, self.record["pretrained"]
        assert place is not None
        if place == before:
            return
        if fingerprint(self._open(place).state_dict()) != self.record["sha256"]:
            raise ValueError(
                f"`model.pretrained` is {place}, which has other weights than {before}, the model that this "
                f"run started from; go back to model.pretrained={before} (a resume does not open it), or "
                "start a new run from the other model: resume=never output_dir=NEW_FOLDER"
            )
        self.record = {**self.record, "pretrained": place}

    def _open(self, place: str) -> Autoencoder:
        with distributed.main_first():  # the first rank downloads from the hub, the others find it
            return build.open_pretrained(place, getattr(self.config.model, "norm_num_groups", None))

    def _check_decoder(self, model: Autoencoder) -> None:
        """Raises ValueError for a decoder of its own that the config neither keeps nor replaces."""
        decoder = describe_decoder(model)
        if decoder is not None and self.config.decoder is None:
            keys = ", ".join(f"{name}: {value}" for name, value in decoder.items())
            raise ValueError(
                f"its decoder is not the mirror of its encoder, and the config has no `decoder`; to keep it, "
                f"set decoder={{{keys}}}, or name the decoder.widths that you want"
            )

    def _remember(self, place: str, model: Autoencoder, adapted: Sequence[AdaptedTensor]) -> None:
        """Makes the record; raises ValueError if ``freeze_encoder`` and changed latents contradict."""
        changed = latent_differences(self.autoencoder, model)
        if changed and self.config.freeze_encoder:
            raise ValueError(
                f"{'; '.join(map(str, changed))}, and freeze_encoder keeps latents as they are: leave one of "
                "these keys out"
            )
        if self.config.data.alpha and self.config.freeze_encoder and model.config.in_channels != 4:
            raise ValueError(
                f"it takes {model.config.in_channels} channels, so its encoder does not see transparency, "
                "and freeze_encoder keeps it so: use freeze_encoder=false, or data.alpha=false"
            )
        settings = latent_settings(model)
        if changed:  # changed latents have another scale, which the run's end measures
            settings = {name: settings[name] for name in ("force_upcast",) if name in settings}
        self.record = {
            "pretrained": place,
            "class": type(model).__name__,
            "sha256": fingerprint(model.state_dict()),
            "settings": settings,
            "adapted": [str(tensor) for tensor in adapted],
        }

    def describe(self) -> list[str]:
        """Returns lines that say what a person should know of it."""
        lines = [
            f"weights of {self.record['pretrained']} ({self.record['class']}, "
            f"sha256 {self.record['sha256'][:12]})"
        ]
        teacher = self.config.loss.teacher
        if not self.config.freeze_encoder and (teacher is None or teacher.latents_weight == 0):
            lines.append(
                "the encoder learns too, so the latents move: denoisers, latent caches and codes made with "
                f"{self.record['pretrained']} will not fit the new model. To keep them, set "
                "freeze_encoder=true, which trains the decoder alone"
            )
        if self.config.freeze_encoder and not self.autoencoder.has_known_scale:
            lines.append(
                "it does not record the scale of its latents, so the exported model will not either: "
                "start from a folder that load_autoencoder(file, family=...).save_pretrained(folder) writes, "
                "or measure one with scripts/latent_stats.py"
            )
        if self.record["adapted"]:
            lines.append(
                "these tensors were adapted to fit:"
                + "".join(f"\n  {line}" for line in self.record["adapted"])
            )
        return lines

    def write(self, folder: Path) -> None:
        """Writes the record into a run's folder."""
        write_json(folder / RECORD, self.record)

    def state_dict(self) -> dict[str, Any]:
        """Returns the record, for a checkpoint."""
        return self.record

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the record of a checkpoint, which holds the weights separately."""
        self.record = state
        self._apply_settings()

    def _apply_settings(self) -> None:
        for model in (self.autoencoder, self.ema.model):
            model.change_config(**self.record["settings"])


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of tensors with their names and shapes, whatever file format they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {list(state[name].shape)} {state[name].dtype}".encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
