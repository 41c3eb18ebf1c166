"""A pipelines.yaml -> one of its pipelines or recipes, with what it extends and overrides."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from curation.settings import ConfigError, explain, nearest, set_path

CONFIG = "pipelines.yaml"


def default_config() -> Path:
    """The pipelines.yaml of the folder where the user stands, else the one that came with us."""
    own = Path(CONFIG)
    return own if own.is_file() else Path(__file__).with_name(CONFIG).resolve()


Named = TypeVar("Named", bound=BaseModel)


def load_named(
    config: Path, kind: str, name: str, overrides: list[str], section: type[Named]
) -> Named:
    """One of the `pipelines` or `recipes` of a config, as `section`, with overrides applied."""
    merged = resolve(read_config(config, kind), name, kind)
    for override in overrides:
        set_path(merged, override)
    scorers = merged.get("scorers")
    for place in scorers.values() if isinstance(scorers, dict) else ():
        if isinstance(place, str) and ":" in place:
            import_beside(config, place.partition(":")[0])
    try:
        if "name" in merged:  # the key above it is the name
            raise ConfigError(f"{config}: {kind}.{name}: unknown key 'name'")
        return section.model_validate({"name": name, **merged})
    except ValidationError as error:
        raise ConfigError(f"{config}: {kind}.{name}: {explain(error, section)}") from None


def read_config(config: Path, kind: str) -> dict[str, Any]:
    """The map of pipelines or recipes of a config file."""
    if not config.is_file():
        raise ConfigError(f"no config file {config}; without --config there is one of ours")
    try:
        tree = yaml.safe_load(config.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{config} is not valid YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get(kind), dict):
        raise ConfigError(f"{config} holds no map of {kind}")
    return tree[kind]


def resolve(
    tree: dict[str, Any], name: str, kind: str, extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The own keys of a pipeline or recipe over those of the one it extends."""
    one = kind.removesuffix("s")
    if name not in tree:
        raise ConfigError(f"unknown {one} {name!r}{nearest(name, tree)}")
    if name in extended_by:
        raise ConfigError(f"the {one} {name!r} extends itself")
    if not isinstance(tree[name] or {}, dict):
        raise ConfigError(f"{kind}.{name} is not a map of keys")
    own = dict(tree[name] or {})
    base = own.pop("extends", None)
    return merge(resolve(tree, base, kind, (*extended_by, name)), own) if base else own


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, map by map; lists and scalars replace."""
    out = dict(base)
    for key, value in own.items():
        both_maps = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both_maps else value
    return out


def import_beside(config: Path, module: str) -> None:
    """Import a Python file beside a config, so that its module is known by name in this process."""
    path = config.parent.absolute() / f"{module}.py"
    spec = importlib.util.spec_from_file_location(module, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        return  # that of an installed package, or none: told where it is looked up
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])
