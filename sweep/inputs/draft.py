"""The draft model of speculative decoding: fetched, digested and offered offline like the model that it drafts for."""

from pathlib import Path

from sweep.inputs.hub import REPOSITORY
from sweep.inputs.model import HubModel, Model, PathModel


class DraftRepository(HubModel):
    """A draft model of the Hugging Face hub."""

    def _own_tokenizer(self, cache_dir: Path) -> None:  # type: ignore[override]
        return None


class DraftFolder(PathModel):
    """A folder in Hugging Face layout, which need not have a tokenizer."""

    def check(self) -> None:
        folder = self._own_tokenizer(Path())
        if not (folder / "config.json").is_file():
            raise ValueError(f"{self.path}: has no config.json; expected a folder in Hugging Face layout")


def draft_model(name: str, revision: str | None) -> Model | None:
    """Return the draft model that an engine's flag names; None for a word that names none, like vLLM's `ngram`."""
    folder = Path(name).expanduser()
    if folder.is_dir() or name.startswith(("/", "./", "../", "~")):
        return DraftFolder(name=folder.name, path=name)
    if REPOSITORY.fullmatch(name):
        return DraftRepository(name=name, repo=name, revision=revision or "main")
    return None
