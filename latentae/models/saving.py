"""Saves models: tensors under their own names, the config in the file, a card on the hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from latentae.models.card import write_card
from latentae.models.checkpoints.configs import embed_config
from latentae.models.checkpoints.reading import check_floating, read_checkpoint
from latentae.models.plain import clean_name, clean_names, has_adapters, without_fused_projections


class SavingMixin:
    """Saves tensors under the names that the model's class gives them, with the config in the weights' file.

    Parts of a model may be compiled, parallel or checkpointed (``vae.decoder = torch.compile(vae.decoder)``).
    The state dict, and so all saved files, has the names without these wrappers. Weights may have either when
    loaded.
    """

    config: Any

    def state_dict(self, *args: Any, **arguments: Any) -> Any:
        """torch's ``state_dict``, under names without the parts of wrappers."""
        state = super().state_dict(*args, **arguments)  # type: ignore[misc]
        _rename(state, arguments.get("prefix", ""), clean_name)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # torch calls this method before those of the submodules, so they see the renamed tensors.
        raw: Mapping[str, Tensor] = super().state_dict()  # type: ignore[misc]
        places = {clean_name(name): name for name in raw}
        _rename(state_dict, prefix, lambda name: places.get(clean_name(name), clean_name(name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]

    def _fix_state_dict_keys_on_load(self, state_dict: Any) -> Any:
        """Cleans and checks the weights that ``from_pretrained`` has read."""
        cleaned = clean_names(state_dict)
        state_dict.clear()
        state_dict.update(cleaned)
        super()._fix_state_dict_keys_on_load(state_dict)  # type: ignore[misc]
        if "quantization_config" not in self.config:
            check_floating(state_dict, self.state_dict())
        return state_dict

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, files: Any, place: Any, names: Any, **arguments: Any
    ) -> Any:
        """Checks shards before ``from_pretrained`` fills the model with them; they arrive here unread."""
        if state_dict is None and "quantization_config" not in model.config:
            are_clean = clean_names(dict.fromkeys(names)).keys() == set(names)
            shards: dict[str, Tensor] = {}
            for file in files:
                tensors = read_checkpoint(Path(file)).tensors
                check_floating(tensors, model.state_dict())
                if not are_clean:  # diffusers would look for the shards' own names
                    shards |= tensors
            if shards:
                state_dict, names = shards, list(shards)
        return super()._load_pretrained_model(model, state_dict, files, place, names, **arguments)  # type: ignore[misc]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **arguments: Any,
    ) -> None:
        """diffusers' ``save_pretrained``, which also writes the config into the metadata of the weights.

        So a weights file that is renamed or moved still contains what its tensors do not show. Fused
        projections are saved split. Adapters are saved as they are, with a warning.
        """
        if has_adapters(self):  # type: ignore[arg-type]
            warnings.warn(
                "the model is saved with its adapters (LoRA or the like) as separate tensors, which "
                "load_autoencoder and from_pretrained cannot open: export_autoencoder and to_diffusers merge "
                "them, and save_lora_adapter writes them alone",
                stacklevel=2,
            )
        model: Any = without_fused_projections(self)  # type: ignore[type-var]
        own: Any = super(SavingMixin, model)
        own.save_pretrained(save_directory, is_main_process, *args, **arguments)
        if is_main_process and Path(save_directory).is_dir():
            embed_config(Path(save_directory))

    def _upload_folder(self, working_dir: str | os.PathLike[str], repo_id: str, **arguments: Any) -> Any:
        # Both of diffusers' ways to the hub end here; save_pretrained(push_to_hub=True) before it returns.
        write_card(self, Path(working_dir), repo_id)
        embed_config(Path(working_dir))
        return super()._upload_folder(working_dir, repo_id, **arguments)  # type: ignore[misc]


def _rename(state: Any, prefix: str, name_of: Callable[[str], str]) -> None:
    """Renames the tensors below ``prefix`` in a state dict, in place and in the same order."""
    renamed = {
        prefix + name_of(name.removeprefix(prefix)) if name.startswith(prefix) else name: tensor
        for name, tensor in state.items()
    }
    if len(renamed) < len(state):
        raise ValueError("two tensors have the same name apart from a wrapper's part, such as `_orig_mod`")
    if renamed.keys() != state.keys():
        state.clear()
        state.update(renamed)
