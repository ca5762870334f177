# backends/host/libraries/parrot_library.py
from collections.abc import Mapping, Sequence

from backends.host.library import EmitTokens, LibrarySettings, PromptRow


def load(settings: LibrarySettings) -> "ParrotLibrary":
    return ParrotLibrary()


class ParrotLibrary:
    version = "1.0"

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        step = 0
        while not all(row.done for row in batch):  # the host ends a row at its length or its EOS
            emit([(index, row.prompt[step % len(row.prompt)]) for index, row in enumerate(batch)])
            step += 1

    def memory(self) -> Mapping[str, float]:
        return {}

    def clear(self) -> None:
        """Holds nothing."""
