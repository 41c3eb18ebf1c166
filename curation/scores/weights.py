"""Weights that a user has to name: which file is missing, and the messages that say what to do."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
        hub_id = "OWNER/MODEL" if Path(name).exists() or is_path(name) else name
        return ConfigError(
            f"the {self.what} {name!r} cannot be loaded: {first_line(reason)}; "
            f"give {self.allowed}; or fetch it where there is a network "
            f"(hf download {hub_id} --local-dir FOLDER) and give --set {self.key}=FOLDER, "
            f"{self.otherwise}"
        )

    def check_place(self, name: str, file: str = "config.json") -> None:
        """Raise ConfigError, at once, for a path that is wrong, or a hub that nobody can reach.

        `file` is what every model of the kind has. A hub id that is not in the local cache needs a
        hub that answers; where none does, what is cached is used without asking.
        """
        path = Path(name).expanduser()
        if path.is_dir():
            if not (path / file).is_file():
                raise self.not_had(name, f"the folder has no {file}")
        elif path.exists():
            raise self.not_had(name, "it is a file, and a folder is needed")
        elif is_path(name):
            raise self.not_had(name, "there is no such folder")
        elif not hub_answers():
            from huggingface_hub import constants, try_to_load_from_cache

            if not isinstance(try_to_load_from_cache(name, file), str):
                why = f"{constants.ENDPOINT} does not answer, and it is in no cache here"
                raise self.not_had(name, why)
            # Else each file is asked for six times, for half a minute. Ray's workers hear of it.
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"


HUB_TIMEOUT_S = 5.0  # ours: a hub that is slower would not send gigabytes


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub id is OWNER/MODEL."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def hub_answers() -> bool:
    """Whether the hub can be connected to; through a proxy, whether the proxy can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    hub = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(hub.scheme)
    through = urlsplit(proxy) if proxy and not proxy_bypass(hub.hostname or "") else hub
    port = through.port or (443 if through.scheme == "https" else 80)
    try:
        socket.create_connection((through.hostname or "", port), HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


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
