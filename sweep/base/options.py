"""The options of the config groups, conf/<group>/<name>.yaml: the built-in options and options in a user's folders.

Hydra composes every option, so each may have a `defaults:` list. Every package may import this module: engines look up
environments, the planner its points, the command line its help.
"""

import copy
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from sweep.base.config import CONF, ConfigError, one_of, shortened

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

PRIMARY = "config"  # conf/config.yaml, which no user's folder may have
MOST_NODES = 100_000  # maximum of keys and values in a user's file
MOST_NESTED = 100  # maximum nesting of brackets in a user's file
PROVIDER = "sweep"  # Hydra's name for a config source

Stamps = tuple[tuple[str, int, int], ...]  # files with their modification times and sizes


def default_folders() -> tuple[Path, ...]:
    """Return the built-in folder, preceded by $SWEEP_CONFIG_DIR if it is set (in all processes of a run)."""
    folder = os.environ.get("SWEEP_CONFIG_DIR")
    return (*([Path(folder)] if folder else []), CONF)


@dataclass(frozen=True)
class ConfigPath:
    """The folders in which options are looked up; the first folder that has an option wins."""

    folders: tuple[Path, ...] = field(default_factory=default_folders)

    @classmethod
    def of_user(cls, user_folders: Sequence[str] = ()) -> "ConfigPath":
        """Return the path with the given folders, then ./conf, then the default folders.

        A ./conf with a config.yaml belongs to another program (or to this project) and is skipped.

        Raises ConfigError for a missing folder (also $SWEEP_CONFIG_DIR), or a given folder with a config.yaml.
        """
        if "" in user_folders:
            raise ConfigError("--config-dir=: expected a folder like conf/")
        inherited = os.environ.get("SWEEP_CONFIG_DIR")
        if inherited and not os.path.isdir(inherited):
            raise ConfigError(f"SWEEP_CONFIG_DIR={shortened(inherited)}: no such folder; expected one like conf/")
        folders = [Path(folder).expanduser().resolve() for folder in user_folders]
        for folder in folders:
            if not os.path.isdir(folder):  # also False for a name that is too long for a path
                raise ConfigError(f"--config-dir {shortened(folder)}: no such folder; expected one like conf/")
            if (folder / f"{PRIMARY}.yaml").exists():
                raise ConfigError(f"--config-dir {folder}: {PRIMARY}.yaml has no effect; put its keys in an experiment")
            if not any(folder.glob("*/*.yaml")):
                raise ConfigError(f"--config-dir {folder}: no option in this folder; expected GROUP/NAME.yaml files")
        local = Path("conf").resolve()
        if local.is_dir() and not (local / f"{PRIMARY}.yaml").exists():
            folders.append(local)
        return cls(tuple(dict.fromkeys([*folders, *default_folders()])))

    def choices(self, group: str) -> list[str]:
        """Return the names of a group's options."""
        return sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})

    def origin(self, group: str, name: object) -> Path | None:
        """Return the file of a user's option; None for a built-in option."""
        files = (folder / group / f"{name}.yaml" for folder in self.folders)
        file = next((path for path in files if os.path.isfile(path)), None)  # a name may be too long for a file
        return None if file is None or file.is_relative_to(CONF) else file

    def load(self, group: str, name: str) -> dict[str, Any]:
        """Return one option, composed. Raises ConfigError if the name is unknown, or Hydra rejects it."""
        if name not in self.choices(group):
            raise one_of(group, name, self.choices(group))
        option = self.compose(None, [f"+{group}='{name}'"]).values[group]
        assert isinstance(option, dict)
        return {str(key): setting for key, setting in option.items()}

    def compose(self, primary: str | None, overrides: Sequence[str]) -> "Composed":
        """Compose a primary configuration and overrides of config groups with Hydra.

        Raises ConfigError with Hydra's message in one line.
        """
        return copy.deepcopy(_composed(self.folders, self._stamps(overrides), primary, tuple(overrides)))

    def _stamps(self, overrides: Sequence[str]) -> Stamps:
        """Return the files' sizes and times, as a cache key; experiments are included only if one is composed."""
        files = [path for folder in self.folders for at in ("*.yaml", "*/*.yaml") for path in folder.glob(at)]
        if not any(override.startswith("+experiment=") for override in overrides):
            files = [path for path in files if path.parent.name != "experiment"]
        files = [path for path in files if path.exists()]  # an editor's lock file is a broken symbolic link
        return tuple((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in sorted(files))


class Composed(NamedTuple):
    """Hydra's composition as plain data, without resolving interpolations."""

    values: dict[str, Any]
    choices: dict[str, Any]  # the chosen option of each group


@functools.lru_cache(maxsize=256)
def _composed(folders: tuple[Path, ...], stamps: Stamps, primary: str | None, overrides: tuple[str, ...]) -> Composed:
    # Imported here: Hydra would double the import time of `sweep --help` and `sweep status`.
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config, choices = _hydra_composition(folders, primary, list(overrides))
        settings = OmegaConf.to_container(config, resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        complaint = " ".join(str(error).partition("Config search path:")[0].split())
        subject = overrides[0].lstrip("+").replace("'", "") if overrides else primary
        raise ConfigError(f"{subject}: {complaint[:300]}") from None
    assert isinstance(settings, dict)
    return Composed({str(key): setting for key, setting in settings.items()}, choices)


def _hydra_composition(
    folders: tuple[Path, ...], primary: str | None, overrides: list[str]
) -> tuple["DictConfig", dict[str, Any]]:
    """Return Hydra's composition and its choices, without the `hydra` settings, which take two thirds of the time."""
    from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
    from hydra._internal.defaults_list import create_defaults_list
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    class Repository(CachingConfigRepository):  # type: ignore[misc]  # Hydra has no types
        def __init__(self) -> None:  # skips the superclass's copy of a repository, which is replaced here
            self.delegate = ConfigRepository(loader.get_search_path())
            self.cache: dict[str, Any] = {}

        def load_config(self, config_path: str) -> Any:
            _refuse_endless_content(folders, config_path)
            return super().load_config(config_path)

    loader, parsed = _loader(folders), OverridesParser.create().parse_overrides(overrides)
    repository = Repository()
    defaults = create_defaults_list(repository, primary, parsed, prepend_hydra=False, skip_missing=False)
    config = loader._compose_config_from_defaults_list(defaults.defaults, repository)
    OmegaConf.set_struct(config, True)
    loader._apply_overrides_to_config(defaults.config_overrides, config)
    return config, dict(defaults.overrides.known_choices)


def _refuse_endless_content(folders: Sequence[Path], option: str) -> None:
    """Reject a user's file that would take extremely long to load.

    Aliases may expand to huge content ("billion laughs"), and Hydra would copy all of it. The time to parse
    nested brackets grows with the square of their depth.
    """
    path = next((path for folder in folders if os.path.isfile(path := folder / f"{option}.yaml")), None)
    if path is None or path.is_relative_to(CONF):
        return
    text = path.read_text(errors="replace")
    depths = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    if max(depths, default=0) > MOST_NESTED:
        raise ConfigError(f"{option}.yaml: brackets are nested more than {MOST_NESTED} deep")
    if "&" in text and _expanded_size(yaml.compose(text, yaml.SafeLoader), {}) > MOST_NODES:
        raise ConfigError(f"{option}.yaml: its aliases expand to more than {MOST_NODES:,} values")


def _expanded_size(node: Any, sizes: dict[int, int]) -> int:
    """Return the number of nodes in a YAML document after every alias is replaced by a copy of its target."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_NODES + 1  # in case the node contains itself
        content = getattr(node, "value", ())
        inner = [child for entry in content for child in (entry if isinstance(entry, tuple) else (entry,))]
        sizes[id(node)] = 1 + (0 if isinstance(content, str) else sum(_expanded_size(child, sizes) for child in inner))
    return sizes[id(node)]


def _refuse_second_override(result: Any) -> None:
    """Reject a second override of a group in one defaults list: Hydra would silently ignore it."""
    groups = Counter(entry.group for entry in result.defaults_list or () if entry.is_override())
    if twice := [group for group, count in groups.items() if count > 1]:
        raise ConfigError(f"defaults: override /{twice[0].lstrip('/')} is listed twice; list it once")


@functools.cache
def _loader(folders: tuple[Path, ...]) -> "ConfigLoaderImpl":
    """Return Hydra's loader of the files in these folders, which rejects settings of Hydra itself in them."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import IConfigRepository
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.core.default_element import ResultDefault
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult

    class Loader(ConfigLoaderImpl):  # type: ignore[misc]  # Hydra has no types
        def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
            result = super()._load_single_config(default, repo)
            _refuse_second_override(result)
            if result.provider == PROVIDER and "hydra" in result.config:
                file = f"{default.config_path}.yaml"
                raise ConfigError(f"hydra: unknown key in {file}; remove it: sweep ignores Hydra's settings")
            return result

    # Hydra's public functions put the folder of the primary configuration before all others, so that the user's options
    # could not replace ours.
    Plugins.instance()
    search = ConfigSearchPathImpl()
    for folder in folders:
        search.append(PROVIDER, f"file://{folder}")
    search.append("schema", "structured://")
    return Loader(search)


def load_option(group: str, name: str) -> dict[str, Any]:
    """Return one built-in option, composed. Raises ConfigError if the name is unknown."""
    return ConfigPath().load(group, name)
