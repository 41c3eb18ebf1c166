"""Weights that a user has to name: which file is missing, and the messages that say what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from curation.settings import ConfigError

TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Weights:
    """What a setting names, for the sentences about it.

    what: of the model, as in "the BLIP-2 checkpoint". key: the setting. allowed: what may be given
    for it, with an example. otherwise: what else the user may do.
    """

    what: str
    key: str
    allowed: str
    otherwise: str

    @property
    def how(self) -> str:
        return f"give {self.allowed}, {self.otherwise}"

    def not_set(self, because: str = "") -> ConfigError:
        return ConfigError(f"{because}{self.key} is not set; {self.how}")

    def unfit(self, name: str, reason: str | Exception) -> ConfigError:
        """What was given cannot be used, and fetching it again would not help."""
        return ConfigError(f"the {self.what} {name!r} {first_line(reason)}; {self.how}")

    def not_had(self, name: str, reason: str | Exception) -> ConfigError:
        """What was given is not there or not whole: how to fetch it from the hub."""
        is_path = Path(name).exists() or name.startswith(("/", ".", "~"))
        hub_id = "OWNER/MODEL" if is_path or name.count("/") > 1 else name
        return ConfigError(
            f"the {self.what} {name!r} cannot be loaded: {first_line(reason)}; "
            f"give {self.allowed}; or fetch it where there is a network "
            f"(hf download {hub_id} --local-dir FOLDER) and give --set {self.key}=FOLDER, "
            f"{self.otherwise}"
        )


def first_line(reason: str | Exception) -> str:
    """Why, without the full stop; the kind of an error that says nothing."""
    return (str(reason).splitlines() or [type(reason).__name__])[0].rstrip(".")


def missing_file(name: str) -> str | None:
    """A weight file of a model of transformers that is missing in a folder; or offline, for a hub
    id, in the local cache. None when nothing is."""
    from huggingface_hub import constants, try_to_load_from_cache

    in_folder = Path(name).is_dir()
    if not in_folder and not constants.HF_HUB_OFFLINE:
        return None  # fetched when the model is loaded

    def find(file: str) -> Path | None:
        found = str(Path(name, file)) if in_folder else try_to_load_from_cache(name, file)
        return Path(found) if isinstance(found, str) and Path(found).is_file() else None

    for weights in TRANSFORMERS_WEIGHTS:
        if find(weights):
            return None
        if index := find(f"{weights}.index.json"):
            parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return next((part for part in parts if not find(part)), None)
    return TRANSFORMERS_WEIGHTS[0]
