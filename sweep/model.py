"""Which weights an engine serves: random ones of a stated architecture, a Hugging Face repository, or a folder.

Every model complains at the door (`check`), has a digest of its content that is known at planning (`digest`), complains
on the node that needs it before anything is built there (`reach`), and comes to a folder in Hugging Face layout on it
(`prepare`). Code of a repository is never run.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx, tqdm  # the HTTP library that this version of the hub raises errors of
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from backends import env
from backends.weights import digest as folder_digest
from backends.weights import file_digest
from sweep import weights
from sweep.weights import Architecture, Vocabulary

SHIPPED_TOKENIZER = Path(__file__).resolve().parent / "data" / "tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")  # of a repository: what engines load besides weights
SAFE_WEIGHTS, PICKLED_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
NOT_NEEDED = ["*/*", "consolidated*"]  # other formats of the same weights
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
RESOLVE_TIMEOUT = 3.0  # s that planning waits for the hub
RESOLVE_PAUSES = (1.0, 2.0, 4.0)  # s between questions to a hub that does not answer, once for all repositories
SERVER_ERROR = 500  # and more: an answer that says nothing of what was asked
TRY_LATER = (408, 429)  # what a hub says that has no time
PROGRESS_INTERVAL = 5.0  # s

Progress = Callable[[str], None]


class Model(BaseModel):
    """What all models have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    launchable: ClassVar[bool] = True  # whether an engine can be given it to load

    name: str
    tokenizer: str | None = None  # folder or Hugging Face repository of another tokenizer than the model's own
    tokenizer_revision: str = "main"  # branch, tag or commit of such a repository
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # that engines compute in
    max_model_len: PositiveInt | None = None  # context that engines are told to make room for; None: the model's
    served_name: str | None = None  # under which engines serve it; None: `name`

    def check(self) -> None:
        """Raise ValueError, in one line that names the key and what is allowed, for what can be known at once."""
        tokenizer = self.tokenizer
        if tokenizer and not Path(tokenizer).expanduser().is_dir() and not REPOSITORY.fullmatch(tokenizer):
            raise ValueError(
                f"model.tokenizer={tokenizer}: no such folder; allowed is one, or a Hugging Face repository"
            )

    def digest(self, cache_dir: Path) -> str:
        """What the content of this model is, with that of another tokenizer, as far as it is known without loading it.

        Raises ValueError, in one line, if there is no such content.
        """
        own = self._digest(cache_dir)
        return own if self.tokenizer is None else f"{own} with tokenizer {self._tokenizer_digest(cache_dir)}"

    def pinned(self, cache_dir: Path) -> Self:
        """The same at the commits that its revisions mean now: a node that is given it loads what was planned."""
        return self.model_copy(update=self._commits(cache_dir))

    def reach(self, cache_dir: Path) -> None:
        """Raise ValueError or OSError, in one line, if `prepare` could not: asked before anything large is made."""
        self._tokenizer_folder(cache_dir)

    def prepare(self, cache_dir: Path, progress: Progress) -> Path:
        """The folder in Hugging Face layout, made on first use under `cache_dir` by one process of the node at a time.

        Raises ValueError or OSError, in one line, if it cannot be had.
        """
        folder = self._folder(cache_dir, progress)
        if self.tokenizer is None or isinstance(self, RandomModel):
            return folder
        return _with_tokenizer(folder, self._tokenizer_folder(cache_dir), cache_dir, progress)

    def load_tokenizer(self, cache_dir: Path) -> Tokenizer | None:
        """What counts this model's tokens, without its weights being there; None where nobody knows.

        Raises ValueError if there is a tokenizer that cannot be read without the model's own code.
        """
        folder = self._tokenizer_folder(cache_dir)
        return None if folder is None else load_tokenizer(folder)

    def _digest(self, cache_dir: Path) -> str:
        raise NotImplementedError

    def _commits(self, cache_dir: Path) -> dict[str, str]:
        """The fields that name a revision of a repository, with the commit instead."""
        commit = self._tokenizer_commit(cache_dir)
        return {} if commit is None else {"tokenizer_revision": commit}

    def _tokenizer_commit(self, cache_dir: Path) -> str | None:
        if self.tokenizer is None or Path(self.tokenizer).expanduser().is_dir():
            return None
        return _commit(self.tokenizer, self.tokenizer_revision, cache_dir)

    def _tokenizer_digest(self, cache_dir: Path) -> str:
        commit = self._tokenizer_commit(cache_dir)
        if commit is not None:
            return f"{self.tokenizer}@{commit}"
        return _files_digest(_tokenizer_files(Path(str(self.tokenizer)).expanduser()))

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        raise NotImplementedError

    def _tokenizer_folder(self, cache_dir: Path) -> Path | None:
        if self.tokenizer is None:
            return self._own_tokenizer(cache_dir)
        folder = Path(self.tokenizer).expanduser()
        if folder.is_dir():
            return folder
        return _hub_files(self.tokenizer, self.tokenizer_revision, cache_dir, _ignore, TOKENIZER_FILES)

    def _own_tokenizer(self, cache_dir: Path) -> Path | None:
        raise NotImplementedError


class RandomModel(Model):
    """Seeded random weights: the speed of an architecture on any machine, without an account or a download.

    `dtype` is also what the weights are stored in (auto: bfloat16).
    """

    architecture: Architecture
    seed: NonNegativeInt = 0

    def check(self) -> None:
        super().check()
        if self.tokenizer and not Path(self.tokenizer).expanduser().is_dir():
            raise ValueError(f"model.tokenizer={self.tokenizer}: allowed for random weights is a folder that exists")
        size = load_tokenizer(self._own_tokenizer(Path())).get_vocab_size()
        if self.architecture.vocab_size < size:
            raise ValueError(
                f"model.architecture.vocab_size={self.architecture.vocab_size}: allowed is at least the {size} tokens "
                "of its tokenizer"
            )

    def digest(self, cache_dir: Path) -> str:
        content = {
            "version": weights.VERSION,
            "architecture": self.architecture.model_dump(),
            "seed": self.seed,
            "dtype": self._stored,
            "tokenizer": {path.name: file_digest(path) for path in _tokenizer_files(self._own_tokenizer(Path()))},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _stored(self) -> weights.Dtype:
        return "bfloat16" if self.dtype == "auto" else self.dtype

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return Path(self.tokenizer).expanduser() if self.tokenizer else SHIPPED_TOKENIZER

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        return _build_once(cache_dir / "models" / f"{_safe(self.name)}-{self.digest(cache_dir)}", self._write, progress)

    def _write(self, folder: Path, progress: Progress) -> None:
        source = self._own_tokenizer(folder)
        for path in _tokenizer_files(source):
            shutil.copyfile(path, folder / path.name)
        tokenizer = load_tokenizer(source)
        special = _special_ids(source, tokenizer)
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
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {"do_sample": False, **special})
        vocabulary = Vocabulary(ordinary_tokens(tokenizer), special["bos_token_id"])
        report = _Percent(f"model {self.name}: random weights", self.architecture.parameters, progress)
        weights.write(folder, self.architecture, vocabulary, self.seed, self._stored, report)


class HubModel(Model):
    """A model of the Hugging Face hub. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN count."""

    repo: str
    revision: str = "main"  # branch, tag or commit

    def check(self) -> None:
        super().check()
        if not REPOSITORY.fullmatch(self.repo):
            raise ValueError(f"model.repo={self.repo}: allowed is organisation/name")

    def reach(self, cache_dir: Path) -> None:
        _hub_files(self.repo, self.revision, cache_dir, _ignore, peek=True)
        super().reach(cache_dir)

    def _digest(self, cache_dir: Path) -> str:
        """repo@commit where the hub or its cache on this machine says which commit that is, else repo@revision."""
        return f"{self.repo}@{_commit(self.repo, self.revision, cache_dir)}"

    def _commits(self, cache_dir: Path) -> dict[str, str]:
        return {**super()._commits(cache_dir), "revision": _commit(self.repo, self.revision, cache_dir)}

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return _hub_files(self.repo, self.revision, cache_dir, _ignore, TOKENIZER_FILES)

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        progress(f"model {self.name}: fetching {self.repo}@{self.revision} unless it is there")
        return _hub_files(self.repo, self.revision, cache_dir, progress)


class PathModel(Model):
    """A folder in Hugging Face layout that is there on every node. It is served as it is, not copied."""

    path: str

    def check(self) -> None:
        super().check()
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"model.path={self.path}: no such folder; allowed is a folder in Hugging Face layout")
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={self.path}: has no config.json; allowed is a folder in Hugging Face layout")

    def _digest(self, cache_dir: Path) -> str:
        """Hash of all its files; a file that was read once is read again only when its size or time has changed."""
        self.check()  # it may be there where the plan was made, and not on this node
        return folder_digest(Path(self.path).expanduser().resolve(), cache_dir)

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return Path(self.path).expanduser()

    def reach(self, cache_dir: Path) -> None:
        self.check()  # it may be there where the plan was made, and not on this node
        super().reach(cache_dir)

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        self.check()
        return Path(self.path).expanduser().resolve()


class ServedModel(Model):
    """A model of which only the name is known, under which a running endpoint serves it."""

    launchable: ClassVar[bool] = False

    def _digest(self, cache_dir: Path) -> str:
        return ""

    def _own_tokenizer(self, cache_dir: Path) -> None:
        return None

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        raise ValueError(f"model={self.name}: only a name; allowed to launch is a model of conf/model")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, special tokens added as engines add them.

    Raises ValueError if there is neither a tokenizer.json nor the two files of a byte-level BPE.
    """
    stamp = tuple(path.stat().st_mtime_ns for path in _tokenizer_files(folder))
    return _load_tokenizer(folder, stamp)


@lru_cache(maxsize=8)
def _load_tokenizer(folder: Path, stamp: tuple[int, ...]) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        tokenizer = Tokenizer.from_file(str(whole))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if not (vocabulary.is_file() and merges.is_file()):
        raise ValueError(
            f"model.tokenizer={folder}: has no tokenizer.json; allowed is a folder or repository that has one"
        )
    # What GPT-2 and OPT repositories have: those come without a tokenizer.json.
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = _tokenizer_config(folder)
    if config.get("add_bos_token"):
        bos = _text(config["bos_token"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def ordinary_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that are printable ASCII text by themselves: not special, not part of a character."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    texts = tokenizer.decode_batch([[id] for id in ids])
    return [id for id, text in zip(ids, texts, strict=True) if text.strip() and text.isascii() and text.isprintable()]


def _special_ids(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """bos_token_id and, where the tokenizer has them, eos_token_id and pad_token_id."""
    config = _tokenizer_config(folder)
    found = {}
    for kind in ("bos_token", "eos_token", "pad_token"):
        number = tokenizer.token_to_id(_text(config.get(kind)))
        if number is not None:
            found[f"{kind}_id"] = number
    if "bos_token_id" not in found:
        raise ValueError(f"model.tokenizer={folder}: has no bos_token; random weights need one")
    return found


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _text(token: Any) -> str:
    """Tokenizer configs have a special token as its text or as a mapping around it."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _build_once(folder: Path, build: Callable[[Path, Progress], None], progress: Progress) -> Path:
    """`folder`, made by `build` beside its place and renamed: it is there whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{folder.name}: waiting for the process that is making it"
    with env.exclusive(folder.with_name(f".{folder.name}.lock"), lambda: progress(waiting)):
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            partial.mkdir()
            build(partial, progress)
            partial.rename(folder)
    return folder


def _with_tokenizer(folder: Path, tokenizer: Path | None, cache_dir: Path, progress: Progress) -> Path:
    """The same weights under another tokenizer: a folder of links."""
    assert tokenizer is not None
    files = _tokenizer_files(tokenizer)
    stamp = hashlib.sha256(json.dumps([str(folder), *(file_digest(path) for path in files)]).encode()).hexdigest()[:16]

    def link(partial: Path, _: Progress) -> None:
        for path in folder.iterdir():
            if path.name not in TOKENIZER_FILES:
                (partial / path.name).symlink_to(path.resolve())
        for path in files:
            shutil.copyfile(path, partial / path.name)

    return _build_once(cache_dir / "models" / f"{_safe(folder.name)}-tokenizer-{stamp}", link, progress)


class _Percent:
    """Says how far a build is, every few seconds."""

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self.what, self.total, self.progress = what, total, progress
        self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self.last >= PROGRESS_INTERVAL or done == self.total:
            self.last = time.monotonic()
            self.progress(f"{self.what}, {done / self.total:.0%} of {self.total / 1e6:,.1f} M")


def _hub_files(
    repo: str,
    revision: str,
    cache_dir: Path,
    progress: Progress,
    names: tuple[str, ...] | None = None,
    peek: bool = False,
) -> Path:
    """A snapshot with the named files, or with all that an engine needs; from the cache where the hub is not reached.

    With `peek` a hub that is reached is only asked for a small file: who may have that may have all.
    """
    api = _hub()
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": _hub_cache(cache_dir),
        "ignore_patterns": NOT_NEEDED,
    }
    try:
        files = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or []]
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        wanted = ("config.json",) if peek else names or (*CONFIGURATION, SAFE_WEIGHTS if safe else PICKLED_WEIGHTS)
        bar = _bar(repo, progress)
        online = {"endpoint": api.endpoint, "token": api.token, "tqdm_class": bar}
        return Path(snapshot_download(repo, allow_patterns=list(wanted), **online, **options))
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if _is_answer(error):
            raise _refused(repo, revision, error) from None
        for weights_pattern in (SAFE_WEIGHTS, PICKLED_WEIGHTS):
            wanted = names or (*CONFIGURATION, weights_pattern)
            folder = _cached_snapshot(repo, allow_patterns=list(wanted), **options)
            if folder is not None and (names or any(folder.glob(weights_pattern))):
                return folder
        reason = _first_line(error)
        raise ValueError(f"model.repo={repo}@{revision}: not on this machine, and no hub ({reason})") from None


def _hub_cache(cache_dir: Path) -> Path:
    """Hugging Face's own cache where HF_HOME or HF_HUB_CACHE name one, else one under `cache_dir`."""
    own = os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")
    return Path(constants.HF_HUB_CACHE) if own else cache_dir / "hub"


def _is_answer(error: Exception) -> bool:
    """Whether the hub has said something of what was asked, instead of nothing or that it is out of order."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else SERVER_ERROR
    return status < SERVER_ERROR and status not in TRY_LATER


def _refused(repo: str, revision: str, error: Exception) -> ValueError:
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"model.revision={revision}: {repo} has none; allowed is a branch, tag or commit of it")
    return ValueError(f"model.repo={repo}@{revision}: {_first_line(error)} (a gated model needs HF_TOKEN)")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _cached_snapshot(repo: str, **options: Any) -> Path | None:
    """What an earlier run has fetched, if it is whole."""
    try:
        return Path(snapshot_download(repo, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        return None


def _bar(repo: str, progress: Progress) -> type[Any]:
    """A progress bar that says how it stands every few seconds instead of drawing itself."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "mininterval": PROGRESS_INTERVAL, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.n and self.n != self.total:
                size = f"{self.n / 1e9:.1f} of {self.total / 1e9:.1f} GB" if self.unit == "B" else f"{self.n} files"
                progress(f"model {repo}: fetched {size}")

    return Bar


def _ignore(text: str) -> None:
    """Progress of what takes no time."""


def _hub() -> HfApi:
    """The hub as the environment names it. A token from nowhere else: a file in somebody's HOME is not this run's."""
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False)


@lru_cache
def _commit(repo: str, revision: str, cache_dir: Path) -> str:
    """The commit that a revision means: as the hub says; else as it last said; else the revision itself.

    Raises ValueError if the hub knows no such repository or revision and never did: one that was renamed or closed
    since keeps its digest, so that results that are there stay what they are.
    """
    if COMMIT.fullmatch(revision):
        return revision
    remembered = cache_dir / "digests" / "hub.json"
    known: dict[str, str] = json.loads(remembered.read_text()) if remembered.is_file() else {}
    key = f"{os.environ.get('HF_ENDPOINT', '')} {repo}@{revision}"
    last = known.get(key) or _fetched_commit(repo, revision, cache_dir)
    try:
        commit = _ask_commit(repo, revision, patient=last is None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if key not in known:
            raise _refused(repo, revision, error) from None
        return known[key]
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled):
        return last or revision
    if known.get(key) != commit:
        with contextlib.suppress(OSError):  # a node's cache may be none of the driver's: then it is asked again
            _write_json(remembered, known | {key: commit})
    return commit


def _ask_commit(repo: str, revision: str, patient: bool) -> str:
    """What the hub says, asked again if it does not answer: where nothing else tells the commit, ids depend on it."""
    while True:
        try:
            return str(_hub().model_info(repo, revision=revision, timeout=RESOLVE_TIMEOUT).sha)
        except (HfHubHTTPError, httpx.TransportError) as error:
            patient = patient and not _is_answer(error)
            pause = next(_pauses(os.environ.get("HF_ENDPOINT", "")), None) if patient else None
            if pause is None:
                raise
            time.sleep(pause)


@lru_cache
def _pauses(hub: str) -> Iterator[float]:
    """What is left of this process's patience with a hub."""
    return iter(RESOLVE_PAUSES)


def _fetched_commit(repo: str, revision: str, cache_dir: Path) -> str | None:
    """The commit that the hub's own cache on this machine has of a revision."""
    name = repo_folder_name(repo_id=repo, repo_type="model")
    reference = _hub_cache(cache_dir) / name / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def _files_digest(files: list[Path]) -> str:
    """16 hex digits of these files' names and content."""
    content = {path.name: file_digest(path) for path in files}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all: others may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.rename(path)


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)
