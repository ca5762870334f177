"""The options of the config groups, conf/<group>/<name>.yaml: ours and those in a user's own folders.

Hydra composes every option, so a `defaults:` list works in each. Everyone may import this module: engines look up their
environments, planning its points, and the command what `--help` lists.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import CONF, ConfigError, one_of

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

PRIMARY = "config"  # conf/config.yaml, which only the project itself has
PROVIDER = "sweep"  # Hydra's word for the origin of a file


@dataclass(frozen=True)
class ConfigPath:
    """The folders that options are looked up in: the first that has an option counts."""

    folders: tuple[Path, ...] = (CONF,)

    @classmethod
    def of_user(cls, user_folders: Sequence[str] = ()) -> "ConfigPath":
        """The folders given, then ./conf, then the project's own.

        A ./conf with a config.yaml is that of another program (or of this project) and is left out.

        Raises:
            ConfigError: for a given folder that does not exist, or that has a config.yaml.
        """
        folders = [Path(folder).expanduser().resolve() for folder in user_folders]
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {folder}: no such folder; allowed is one like conf/")
            if (folder / f"{PRIMARY}.yaml").exists():
                raise ConfigError(f"--config-dir {folder}: {PRIMARY}.yaml has no effect; put its keys in an experiment")
            if not any(folder.glob("*/*.yaml")):
                raise ConfigError(f"--config-dir {folder}: no option there; allowed is a folder with GROUP/NAME.yaml")
        local = Path("conf").resolve()
        if local.is_dir() and not (local / f"{PRIMARY}.yaml").exists():
            folders.append(local)
        return cls(tuple(dict.fromkeys([*folders, CONF])))

    def choices(self, group: str) -> list[str]:
        """The names of a group's options."""
        return sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})

    def origin(self, group: str, name: object) -> Path | None:
        """The file of an option that is the user's; None for one of the project's."""
        files = (folder / group / f"{name}.yaml" for folder in self.folders)
        file = next((path for path in files if path.is_file()), None)
        return None if file is None or file.is_relative_to(CONF) else file

    def load(self, group: str, name: str) -> dict[str, Any]:
        """One option, composed.

        Raises:
            ConfigError: if there is none of that name, or Hydra refuses it.
        """
        if name not in self.choices(group):
            raise one_of(group, name, self.choices(group))
        return copy.deepcopy(_load(self, group, name))

    def compose(self, primary: str | None, overrides: Sequence[str]) -> "DictConfig":
        """Compose a primary configuration and overrides with Hydra, whose own settings are under `hydra`.

        Raises:
            ConfigError: with Hydra's complaint, in one line.
        """
        # Hydra is half of what `sweep --help` and `sweep status` would import.
        from hydra.errors import HydraException
        from hydra.types import RunMode
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            config: DictConfig = _loader(self.folders).load_configuration(primary, list(overrides), RunMode.RUN)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
            complaint = " ".join(str(error).partition("Config search path:")[0].split())
            subject = overrides[0].lstrip("+").replace("'", "") if overrides else primary
            raise ConfigError(f"{subject}: {complaint[:300]}") from None
        return config


def _loader(folders: Sequence[Path]) -> "ConfigLoaderImpl":
    """Hydra's loader of the files in these folders, which refuses settings of Hydra itself in them."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import IConfigRepository
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.core.default_element import ResultDefault
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult

    class Loader(ConfigLoaderImpl):  # type: ignore[misc]  # Hydra has no types
        def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
            result = super()._load_single_config(default, repo)
            if result.provider == PROVIDER and "hydra" in result.config:
                file = f"{default.config_path}.yaml"
                raise ConfigError(f"hydra: unknown key in {file}; remove it: settings of Hydra have no effect here")
            return result

    # Hydra's public functions put the folder of the primary configuration before all others: the user's options could
    # only add to ours.
    Plugins.instance()
    search = ConfigSearchPathImpl()
    search.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        search.append(PROVIDER, f"file://{folder}")
    search.append("schema", "structured://")
    return Loader(search)


@functools.cache
def _load(path: ConfigPath, group: str, name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    option = OmegaConf.to_container(path.compose(None, [f"+{group}='{name}'"])[group], resolve=False)
    assert isinstance(option, dict)
    return {str(key): value for key, value in option.items()}


def load_option(group: str, name: str) -> dict[str, Any]:
    """One of the project's own options, composed.

    Raises:
        ConfigError: if there is none of that name.
    """
    return ConfigPath().load(group, name)
