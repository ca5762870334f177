"""Workloads of human-written text: prompts from a file or a hub's data set, and stories cut to random lengths."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import PositiveInt
from tokenizers import Tokenizer

from sweep.base.config import first_line, shortened
from sweep.base.exits import Outage
from sweep.inputs import hub
from sweep.inputs import rows as files
from sweep.inputs.workload import DATA, Draw, Encoded, Serving, Workload, content_digest, encode_prompts, with_headers

ANSWERING = ("assistant", "gpt", "bing", "chatgpt", "bard", "model")  # roles of the model, in chats and in ShareGPT
ASKING = ("user", "human")
INSTRUCTING = ("system", "developer")
CALLING = ("function_call", "tool_call")  # ShareGPT's roles of a model that calls tools, and of their results
RETURNING = ("tool", "function", "observation", "function_response", "tool_response", "ipython")
CONTENT = ("content", "value", "text")  # keys of a turn's text


class RecordedPrompt(NamedTuple):
    """A recorded prompt, with the length or the text of its answer if available."""

    text: str
    output_tokens: int | None
    answer: str | None

    def length(self, tokenizer: Tokenizer | None) -> int:
        """Return the number of tokens of the answer; if there is no tokenizer, the number of words."""
        if self.output_tokens is not None:
            return self.output_tokens
        text = self.answer or ""
        return max(len(tokenizer.encode(text, add_special_tokens=False).ids if tokenizer else text.split()), 1)


class Unusable(Exception):
    """A row of a file cannot be sent; the message is the reason. Such rows may be skipped."""

    def __init__(self, reason: str, of_conversation: bool = False) -> None:
        super().__init__(reason)
        self.of_conversation = of_conversation


class PromptRows(NamedTuple):
    """The prompts in a file's rows, and the reasons for skipped rows, by row number."""

    questions: list[RecordedPrompt]
    faults: dict[int, str]


class Prompts(Workload):
    """Prompts from a file in random order, repeated in a new order if there are more requests than prompts."""

    file: str  # name of a bundled task, or path of a file: docs/experiments.md has the formats
    column: str | None = None  # column that holds the prompts; null: prompt, text, question, messages, ...
    first: PositiveInt | None = None  # use only this many prompts from the start of the file
    texts: PositiveInt = 1  # number of the file's texts that are joined into one prompt
    output_tokens: PositiveInt | None = None  # null: as the file says, or the length of the recorded answer
    skip_unsendable: bool = False  # skip rows without a prompt or a length; false: reject the file

    def check(self) -> None:
        if _shipped(self.name) not in (None, self._path):  # its rows would have the bundled task's label
            problem = f"{self.name} is the name of a bundled task"
            raise ValueError(f"workload.file={self.file}: {problem}; use workload=prompts workload.file={self.file}")
        self._questions()

    def digest(self, cache_dir: Path) -> str:
        return content_digest(self._path)

    @property
    def _path(self) -> Path:
        return _shipped(self.file) or Path(self.file).expanduser()

    def notes(self, cache_dir: Path, tokenizer: Tokenizer | None = None) -> list[str]:
        questions, faults = self.fetched(cache_dir)._prompt_rows()
        return files.omissions(self.file or self.name, len(questions) + len(faults), faults)

    def _questions(self) -> list[RecordedPrompt]:
        return self._prompt_rows().questions

    def _prompt_rows(self) -> PromptRows:
        shipped = ", ".join(sorted(path.stem for path in (DATA / "prompts").glob("*.jsonl")))
        key = f"workload.file={self.file}"
        return self._read(files.read_rows(self._path, key, f", or one of {shipped}", self.first), key)

    def _read(self, rows: list[files.FileRow], key: str) -> PromptRows:
        """Return the prompts in these rows. Raises ValueError for unsendable rows that may not be skipped."""
        if self.column is not None and not any(files.column_name(self.column) in row for row in rows):
            expected = files.columns_of(rows)
            raise ValueError(f"workload.column={self.column}: {key} has no such column; expected: {expected}")
        collected, skip = PromptRows([], {}), True
        for number, row in enumerate(rows, 1):
            try:
                collected.questions.append(_question(row, self.column, self.output_tokens))
            except Unusable as error:
                collected.faults[number] = str(error)
                skip = skip and (self.skip_unsendable or error.of_conversation)
        files.check_faults(collected.faults, len(rows), key, skip)
        return collected

    def _draw(self, draw: Draw, tokenizer: Tokenizer | None) -> tuple[list[Encoded], list[int]]:
        questions = self._questions()
        # The texts at each position of a prompt; with one text per prompt, the first position is the prompt.
        places = ["prompts", *(f"prompts/{place}" for place in range(1, self.texts))]
        parts = [[questions[i] for i in draw.cycle(len(questions), place)] for place in places]
        texts = ["\n\n".join(part.text for part in prompt) for prompt in zip(*parts, strict=True)]
        if self.unique_header:
            texts = with_headers(texts, draw, tokenizer)
        outputs = [self.output_tokens or question.length(tokenizer) for question in parts[0]]
        return encode_prompts(texts, tokenizer), outputs


class Paraphrases(Prompts):
    """Questions in several wordings. The wordings in a cluster have one meaning; other clusters are near misses."""

    file: str = "paraphrases"  # name of a bundled task, or path of a file with the columns prompt and cluster
    unique_header: bool = False

    def check(self) -> None:
        super().check()
        self.meanings()

    def meanings(self) -> dict[str, str]:
        key = f"workload.file={self.file}"
        clusters: dict[str, str] = {}
        for number, row in enumerate(files.read_rows(self._path, key, first=self.first), 1):
            if not row.get("cluster"):
                raise ValueError(f"{key}: row {number} has no cluster; expected a label for the prompt's meaning")
            with suppress(Unusable):
                clusters[_question(row, self.column, 1).text] = str(row["cluster"])
        return clusters


class HubPrompts(Prompts):
    """Prompts from a data set on the Hugging Face hub, or in a folder with the same layout."""

    file: str = ""
    dataset: str  # organisation/name, or the path of a folder
    revision: str = "main"  # branch, tag or commit
    config: str | None = None  # folder of a data set with several configurations
    split: str = "train"
    instead: str | None = None  # workload used instead if this one cannot be fetched and the user did not choose it

    def obstacle(self, cache_dir: Path) -> str | None:
        """Return why the data set cannot be fetched; None if it is on this machine. Raises Outage if unknown."""
        try:
            self.fetched(cache_dir)
        except Outage:
            raise
        except (OSError, ValueError) as error:
            return first_line(error)
        return None

    def check(self) -> None:
        if not (self._local or hub.REPOSITORY.fullmatch(self.dataset)):
            allowed = "organisation/name on the Hugging Face hub, or the path of a folder"
            raise ValueError(f"workload.dataset={self.dataset}: no such folder; expected {allowed}")

    def digest(self, cache_dir: Path) -> str:
        """Return a hub data set's commit or a folder's digest. The rows are read too, so that errors appear now."""
        local = self.fetched(cache_dir)
        local._questions()
        if self._local:
            return content_digest(*self._files())
        return f"{content_digest()} {self.dataset}@{self.pinned(cache_dir).revision}"

    def pinned(self, cache_dir: Path) -> Self:
        if self._local:
            return self
        commit = hub.resolve_commit(self.dataset, self.revision, cache_dir, "dataset")
        return self.model_copy(update={"revision": commit})

    def fetched(self, cache_dir: Path) -> Self:
        if self._local:
            return self
        folder = hub.fetch_dataset(self.dataset, self.revision, cache_dir, self._of_split, f"*{self.split}*")
        return self.model_copy(update={"dataset": str(folder)})

    @property
    def _local(self) -> bool:
        return Path(self.dataset).expanduser().is_dir()

    def _files(self) -> list[Path]:
        folder = Path(self.dataset).expanduser()
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return [folder / name for name in self._of_split(names)]

    def _of_split(self, names: Iterable[str]) -> list[str]:
        """Return the files of the split, in order. Raises ValueError with the existing files if the split has none."""
        existing = [Path(name) for name in names if Path(name).suffix in hub.ROWS]
        pattern = re.compile(rf"(^|/)({re.escape(self.split)})([-_./]|$)")
        chosen = [file for file in existing if pattern.search(file.as_posix())]
        if self.config is not None:
            chosen = [file for file in chosen if self.config in file.parts]
        if folders := sorted({file.parent.as_posix() for file in chosen})[1:]:
            every = ", ".join(sorted({file.parent.name for file in chosen}))
            problem = f"workload.config={self.config}: {len(folders) + 1} parts have this split"
            raise ValueError(f"{problem}; expected one of: {every}")
        suffixes = [file.suffix for file in chosen]
        chosen = [file for file in chosen if file.suffix == (".parquet" if ".parquet" in suffixes else suffixes[0])]
        if not chosen:
            there = ", ".join(file.as_posix() for file in existing[:8]) or "no file of rows"
            raise ValueError(f"workload.split={self.split}: no such split in {self.dataset}, which has {there}")
        return sorted(file.as_posix() for file in chosen)

    def _prompt_rows(self) -> PromptRows:
        key, rows = f"workload.dataset={self.dataset}", list[files.FileRow]()
        for file in self._files():
            rows += files.read_rows(file, key, first=None if self.first is None else self.first - len(rows))
            if len(rows) == self.first:
                break
        return self._read(rows, key)


class Stories(Serving):
    """Bundled stories, joined after a unique prefix and cut at random lengths; answers have up to `output_tokens`."""

    file: str = "stories"  # name of a bundled task

    def check(self) -> None:
        super().check()
        if _shipped(self.file) is None:
            raise ValueError(f"workload.file={self.file}: expected the name of a bundled task")

    def lengths(self, draw: Draw) -> list[tuple[int, int]]:
        return [(length, self.output_tokens) for length, _ in super().lengths(draw)]

    def _draw(self, draw: Draw, tokenizer: Tokenizer | None) -> tuple[list[Encoded], list[int]]:
        path = _shipped(self.file)
        assert path is not None
        stories = [str(row["prompt"]) for row in files.read_rows(path, "workload.file")]
        inputs, outputs = map(list, zip(*self.lengths(draw), strict=True))
        encoded = encode_prompts(stories, tokenizer)
        shortest = min(len(text.split() if ids is None else ids) for text, ids in encoded)
        texts = []
        for number, length in enumerate(inputs):
            each = Draw(draw.seed, draw.phase, -(-length // shortest))
            texts.append("\n\n".join(stories[i] for i in each.cycle(len(stories), f"stories/{number}")))
        texts = with_headers(texts, draw, tokenizer) if self.unique_header else texts
        return [cut(text, length, tokenizer) for text, length in zip(texts, inputs, strict=True)], outputs


def cut(text: str, length: int, tokenizer: Tokenizer | None) -> Encoded:
    """Cut a text after `length` tokens (words without a tokenizer), and count its tokens again."""
    if tokenizer is None:
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        return Encoded(text[: ends[min(length, len(ends)) - 1]], None)
    offsets = tokenizer.encode(text).offsets
    return encode_prompts([text[: offsets[min(length, len(offsets)) - 1][1]]], tokenizer)[0]


def _question(row: files.FileRow, column: str | None, length: int | None) -> RecordedPrompt:
    """Return the prompt in a row; its answer has `length` tokens or, if None, the row's number. Raises Unusable."""
    present = [name for name in files.PROMPT_COLUMNS if name in row]
    name = next((name for name in present if row[name]), next(iter(present), None))
    name = files.column_name(column) if column else name
    prompt, tokens = None if name is None else turns_of(row.get(name)), length
    if isinstance(prompt, str) and name in files.CONVERSATIONS:
        raise Unusable(f"{name} is not a list of turns; expected JSON")
    is_conversation = isinstance(prompt, list)
    text, answer = _of_turns(prompt, str(name)) if isinstance(prompt, list) else (prompt, None)
    if not isinstance(text, str) or not text:
        problem = f"{name}={shortened(ascii(text))}" if name in row else f"no prompt among {files.columns_of([row])}"
        raise Unusable(
            f"{problem}; expected text in {column or ', '.join(files.PROMPT_COLUMNS)} (or workload.column=NAME)",
            of_conversation=prompt is None and not {*files.CONVERSATIONS}.isdisjoint(present),
        )
    cell = row.get("output_tokens")
    if length is None and cell not in (None, "") and cell == cell:  # a table has NaN in an empty cell
        if (tokens := files.whole_number(cell)) is None:
            raise Unusable(f"output_tokens={shortened(repr(cell))}; expected a whole number of at least 1")
    elif length is None and not answer:
        raise Unusable("no output_tokens and no turn with an answer; set workload.output_tokens", is_conversation)
    for part, content in (("prompt", text), ("answer", answer)):
        try:
            (content or "").encode()
        except UnicodeEncodeError:
            problem = f"{name}: a lone surrogate in the {part}"
            raise Unusable(f"{problem}; expected valid Unicode", is_conversation) from None
    return RecordedPrompt(text, tokens, answer)


def turns_of(cell: Any) -> Any:
    """Return the turns in a cell: a list, one turn or {messages: [...]}, also as JSON or Python text.

    Return the text of {prompt: text}, and any other cell unchanged.
    """
    if isinstance(cell, Mapping):
        is_row = all(files.column_name(key) in files.KNOWN_COLUMNS.values() for key in cell)
        return keyed(cell, files.PROMPT_COLUMNS if is_row else files.CONVERSATIONS) or [cell]
    if not isinstance(cell, str) or not re.match(r"[\s\ufeff]*[\[{\"]", cell):
        return cell
    for parse in (json.loads, ast.literal_eval) if re.search(r"'(role|from|speaker)'", cell) else (json.loads,):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = parse(cell.strip("\ufeff"))
            turns = turns_of(parsed)  # text inside text: some exports encode twice
            if isinstance(parsed, Mapping) and isinstance(turns, str):
                return turns
            if isinstance(turns, list) and all(isinstance(t, Mapping) and keyed(t, files.SPEAKERS) for t in turns):
                return turns
    return cell


def _of_turns(turns: list[Any], column: str) -> tuple[str, str | None]:
    """Return the turns before the first answer as one prompt, and the answer. Raises Unusable if there is no prompt."""
    question, asked = list[str](), False
    for turn in turns:
        speaker, text = speaker_of(turn, column), text_of_turn(turn, column)
        if speaker in ANSWERING:
            if not asked:
                raise Unusable(f"{column}: no question before the first answer", of_conversation=True)
            return "\n\n".join(question), text or None
        question += [text] if text else []
        asked = asked or (speaker in ASKING and text != "")
    if not asked:
        raise Unusable(f"{column}: no question", of_conversation=True)
    return "\n\n".join(question), None


def keyed(turn: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return what a turn has under the first of these simplified keys that is not empty; None if all are."""
    cells = {files.simplified(key): cell for key, cell in turn.items()}
    return next((cells[key] for key in keys if cells.get(key)), None)


def speaker_of(turn: Any, column: str, of_tools: Iterable[str] = ()) -> str:
    """Return the speaker of a turn in a column. Raises Unusable for an unknown speaker."""
    if not isinstance(turn, Mapping):
        problem = f"{column}: a turn is not a mapping"
        raise Unusable(f"{problem}; expected {{role, content}} or {{from, value}}", of_conversation=True)
    speaker = str(keyed(turn, files.SPEAKERS) or "").strip().lower()
    if not speaker:
        problem = f"{column}: a turn has the keys {files.columns_of([dict(turn)])}"
        raise Unusable(f"{problem}; expected role or from", of_conversation=True)
    if speaker not in (expected := (*ASKING, *INSTRUCTING, *ANSWERING, *of_tools)):
        problem = f"{column}: a turn of {shortened(speaker)}"
        raise Unusable(f"{problem}; expected {', '.join(expected)}", of_conversation=True)
    return speaker


def text_of_turn(turn: Mapping[str, Any], column: str) -> str:
    """Return the text of a turn, which some chat formats split into parts. Raises Unusable for an image or a sound."""
    content = keyed(turn, CONTENT)
    if isinstance(content, list):
        kinds = (part.get("type") for part in content if isinstance(part, Mapping) and not part.get("text"))
        if kind := next((kind for kind in kinds if kind not in (None, "text")), None):
            raise Unusable(f"{column}: a part of type {shortened(str(kind))}; expected text", of_conversation=True)
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _shipped(name: str) -> Path | None:
    """Return the file of a bundled task; None if there is no task of this name."""
    path = DATA / "prompts" / f"{name}.jsonl"
    return path if path.is_file() else None
