"""The lockfiles of a run's environments: from its results, from conf/environment, or resolved once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from backends.base import Backend, EnvironmentChoice, EnvironmentSpec, Host, Platform
from backends.prepare import environments, locks
from sweep.base.config import ConfigError, Settings, cache_directory
from sweep.base.exits import Outage
from sweep.base.options import ConfigPath
from sweep.base.whole_file import read_bounded
from sweep.disk import object_store
from sweep.disk.run_files import RunPaths, write_whole
from sweep.drive import policy
from sweep.plan.plan import Plan

DigestPrograms = Callable[[EnvironmentSpec], dict[str, str]]  # digests of a user's programs; ValueError if nodes differ
EnvironmentKey = tuple[EnvironmentChoice, str, tuple[str, ...], bool]


class RunEnvironments:
    """The environments of a run's engines, each composed once and locked once."""

    def __init__(
        self,
        settings: Settings,
        options: ConfigPath,
        kept_locks: Mapping[str, str],
        host: Host | None = None,
        digest_programs: DigestPrograms = environments.own_content,
        pinned: bool = False,
    ) -> None:
        self.settings, self.options, self.kept_locks, self.host = settings, options, kept_locks, host
        self.digest_programs = digest_programs
        self.pinned = pinned  # whether stored lockfiles are used even if the requirements have changed
        self.cache = cache_directory(settings.cache_dir)
        self.composed: dict[EnvironmentKey, EnvironmentSpec | str] = {}
        self.locked: dict[EnvironmentKey, EnvironmentSpec | str] = {}
        self.targets: dict[tuple[EnvironmentKey, str | None, str | None], str] = {}  # by a node's machine and Python
        self.fingerprints: dict[tuple[EnvironmentKey, bool], str] = {}  # cached for thousands of points

    def compose(self, backend: Backend, platform: str) -> EnvironmentSpec | str:
        """Return an engine's environment with its existing lockfile, if any; or why it has no environment."""
        key = self._key(backend, platform)
        if key not in self.composed:
            try:
                spec = self._chosen(backend.env, backend, platform, self.host)
                if backend.traits.computes_model and (spec.python or spec.binary):
                    spec = spec.model_copy(update={"content": self.digest_programs(spec)})
                self.composed[key] = self._found(spec).model_copy(update={"plain": self._plain(backend, platform)})
            except ConfigError:  # a mistyped name is bad input, not an unavailable engine
                raise
            except ValueError as error:
                self.composed[key] = str(error)
        return self.locked.get(key, self.composed[key])

    def target(self, backend: Backend, platform: str, node: Host) -> str:
        """Return the platform of the lockfile for an engine's environment on nodes like this node."""
        key = self._key(backend, platform), node.machine, node.python
        if key not in self.targets:
            host = replace(self.host or node, machine=node.machine, python=node.python)
            self.targets[key] = locks.node_target(self._chosen(backend.env, backend, platform, host))
        return self.targets[key]

    def lock(self, backend: Backend, platform: str) -> EnvironmentSpec | str:
        """Return the environment with its lockfile, resolving it if necessary (never in a dry run), or why that fails.

        Raises ConfigError if relock=true is not possible; Outage if no package index answers.
        """
        key, spec = self._key(backend, platform), self.compose(backend, platform)
        if not isinstance(spec, str) and key not in self.locked:
            anew = self.settings.relock and spec.lock is not None
            unlocked = spec.model_copy(update={"lock": None}) if anew else spec
            resolves = locks.needed(unlocked) and not self.settings.engineless
            self.locked[key] = self._resolve(unlocked) if resolves else spec
        return self.compose(backend, platform)

    def settled(self, backend: Backend, platform: str) -> bool:
        """Return whether `lock` has been called for the environment before."""
        return self._key(backend, platform) in self.locked

    def fingerprint(self, backend: Backend, platform: str) -> str:
        """Return the fingerprint of an environment, or why it cannot be computed."""
        key = self._key(backend, platform)
        state = key, key in self.locked
        if state not in self.fingerprints:
            spec = self.compose(backend, platform)
            self.fingerprints[state] = f"none: {spec}" if isinstance(spec, str) else environments.fingerprint(spec)
        return self.fingerprints[state]

    def _resolve(self, spec: EnvironmentSpec) -> EnvironmentSpec | str:
        try:
            return locks.resolve_lock(spec, self.cache, print)
        except environments.EnvironmentFailed as error:
            if policy.is_waited_for(error):
                raise Outage(str(error)) from None
            if self.settings.relock:
                raise ConfigError(f"relock=true: {error}") from None
            return f"not locked for {locks.node_target(spec)}: {error}"

    def _plain(self, backend: Backend, platform: str) -> EnvironmentSpec | None:
        """Return the environment without extras if other engines of the plan, not this one, need them; else None."""
        extras = set(backend.env.extras)
        if not extras or extras & set(backend.features()):
            return None
        choice = backend.env.model_copy(update={"extras": ()})
        spec = self._found(self._chosen(choice, backend, platform, self.host))
        return None if locks.needed(spec) and not self.settings.engineless else spec

    def _chosen(self, choice: EnvironmentChoice, backend: Backend, platform: str, host: Host | None) -> EnvironmentSpec:
        on: Platform = "cuda" if platform == "cuda" else "cpu"
        return environments.resolve(choice, on, self.options, backend.features(), host)

    def _found(self, spec: EnvironmentSpec) -> EnvironmentSpec:
        if self.pinned:
            spec = locks.with_lock(spec, self.kept_locks, any_requirements=True)
        return locks.with_lock(spec, self.kept_locks, *locks.committed(self.options), locks.remembered(self.cache))

    def _key(self, backend: Backend, platform: str) -> EnvironmentKey:
        return backend.env, platform, backend.features(), backend.traits.computes_model


def kept_locks(settings: Settings, paths: RunPaths) -> dict[str, str]:
    """Return the lockfiles that earlier commands stored in the results, by file name.

    Raises ConfigError if they cannot be read; Outage if the object store does not answer.
    """
    try:
        if not object_store.is_url(settings.out):
            return {path.name: read_bounded(path, locks.LARGEST_LOCK).decode() for path in paths.locks.glob("*.txt")}
        store = object_store.ObjectStore(settings.out)
        return {Path(name).name: (store.read(name) or b"").decode() for name in store.list(paths.locks.name)}
    except OSError as error:
        raise object_store.store_error(f"out={settings.out}", error) from None


def keep_locks(plan: Plan, paths: RunPaths) -> None:
    """Store the plan's lockfiles in the results, so that later commands with the same `out` install the same versions.

    A replaced lockfile is kept next to the new one, under its digest, since rows were measured with it.
    """
    specs = {locks.file_name(each.environment): each.environment for each in plan.deployments if each.environment}
    for spec in (spec for spec in specs.values() if spec.lock is not None):
        file, content = paths.locks / locks.file_name(spec), locks.text(spec)
        before = read_bounded(file, locks.LARGEST_LOCK).decode() if file.exists() else None
        if before is not None and before != content:
            write_whole(paths, file.with_name(f"{file.stem}.{locks.lock_digest(before)}.txt"), before)
        if before != content:
            write_whole(paths, file, content)
