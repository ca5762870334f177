"""The draft model for speculative decoding: fetched, digested and available offline like the main model."""

from pathlib import Path

from sweep.inputs.hub import REPOSITORY
from sweep.inputs.model import HubModel, Model, PathModel


class DraftRepository(HubModel):
    """A draft model on the Hugging Face hub."""

    def _own_tokenizer(self, cache_dir: Path) -> None:  # type: ignore[override]
        return None


class DraftFolder(PathModel):
    """A draft model in a folder in Hugging Face layout; it may lack a tokenizer."""

    def check(self) -> None:
        folder = self._own_tokenizer(Path())
        if not (folder / "config.json").is_file():
            raise ValueError(f"{self.path}: no config.json; expected a folder in Hugging Face layout")


def draft_model(name: str, revision: str | None) -> Model | None:
    """Return the draft model given in an engine's flag; None for a keyword instead of a model, e.g. vLLM's `ngram`."""
    folder = Path(name).expanduser()
    if folder.is_dir() or name.startswith(("/", "./", "../", "~")):
        return DraftFolder(name=folder.name, path=name)
    if REPOSITORY.fullmatch(name):
        return DraftRepository(name=name, repo=name, revision=revision or "main")
    return None
