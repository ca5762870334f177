"""OpenVINO GenAI: its `ContinuousBatchingPipeline` in a separate process.

The pipeline holds Python's lock during a whole step, so no stream could be served from the same process during a step.
"""

import itertools
import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from backends.host.library import LibrarySettings, PromptRow, Step

FOLDER = "openvino"  # subfolder of the model's folder with the exported weights
STEP_WAIT = 1.0  # seconds that one step waits for tokens
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
TOO_SMALL = "out of memory: the KV cache has no room for this request; raise backend.flags.cache_size"


class RowNews(NamedTuple):
    """A request's number, its new tokens, and whether it has ended."""

    number: int
    tokens: list[int]
    ended: bool
    error: str | None


def load(settings: LibrarySettings) -> "OpenVINOLibrary":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=run_pipeline, args=(theirs, ours, settings), daemon=True
    )
    process.start()
    theirs.close()  # so that its end is noticed
    return OpenVINOLibrary(ours, process)


class OpenVINOLibrary:
    """The server's side of the process that runs the pipeline."""

    adds_any_time = True  # the process accepts rows between any two steps

    def __init__(self, pipe: Connection, process: Any) -> None:
        self.pipe, self.process = pipe, process
        self.sending = threading.Lock()
        self.numbers, self.rows = itertools.count(), dict[int, PromptRow]()
        self.usage = 0.0
        self.version = str(self._receive())

    def add(self, row: PromptRow) -> None:
        number = next(self.numbers)
        self.rows[number] = row
        self._send("add", number, list(row.prompt), row.max_tokens, sorted(row.ends))

    def step(self) -> Sequence[Step]:
        if not self.pipe.poll(STEP_WAIT):
            return []
        steps, self.usage = self._receive()
        news = [(self.rows.pop(one.number, None) if one.ended else self.rows.get(one.number), one) for one in steps]
        return [Step(row, one.tokens, one.error) for row, one in news if row is not None]

    def drop(self, row: PromptRow) -> None:
        for number in [number for number, added in self.rows.items() if added is row]:
            del self.rows[number]
            self._send("drop", number)

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token after a text's first token. No row may be running."""
        self._send("score", list(map(list, texts)))
        while not isinstance(scores := self._receive(), list):  # the last step of a row that was dropped
            pass
        return scores

    def memory(self) -> Mapping[str, float]:
        return {"kv_cache_usage": self.usage if self.rows else 0.0}

    def clear(self) -> None:
        for row in list(self.rows.values()):
            self.drop(row)

    def _send(self, *command: Any) -> None:
        with self.sending:
            self.pipe.send(command)

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            status = self.process.exitcode
            ending = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            raise SystemExit(f"host: OpenVINO's process ended: {ending}") from None


def run_pipeline(pipe: Connection, other_end: Connection, settings: LibrarySettings) -> None:
    """Run the pipeline and obey the server's commands, until the pipe is closed."""
    other_end.close()
    pipeline = BatchingPipeline(settings)
    pipe.send(pipeline.version)
    commands: dict[str, Callable[..., None]] = {"add": pipeline.add, "drop": pipeline.drop}
    try:
        while True:
            while pipe.poll(0 if pipeline.is_busy() else None):
                command, *arguments = pipe.recv()
                if command == "score":
                    pipe.send([pipeline.score(text) for text in arguments[0]])
                else:
                    commands[command](*arguments)
            pipe.send(pipeline.step())
    except (EOFError, BrokenPipeError):
        return


class BatchingPipeline:
    """The pipeline, and its requests by number."""

    def __init__(self, settings: LibrarySettings) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.genai, self.numpy, self.tensor = openvino_genai, numpy, openvino.Tensor
        self.version = openvino_genai.__version__.partition("-")[0]
        flags, scheduler = dict(settings.flags), openvino_genai.SchedulerConfig()
        properties = flags.pop("properties")
        for name, value in flags.items():
            setattr(scheduler, name, value)
        precision = properties["INFERENCE_PRECISION_HINT"]
        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES[precision] not in able:  # otherwise it would silently compute in another format
            formats = ", ".join(DTYPES[name] for name, feature in CAPABILITIES.items() if feature in able)
            raise ValueError(f"backend.dtype={DTYPES[precision]}: on this CPU OpenVINO computes in {formats} only")
        folder = str(settings.model / FOLDER)
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties, {})
        self.handles: dict[int, Any] = {}

    def is_busy(self) -> bool:
        return bool(self.pipeline.has_non_finished_requests())

    def add(self, number: int, prompt: list[int], max_tokens: int, ends: list[int]) -> None:
        self.handles[number] = self._request(number, prompt, max_tokens, ignore_eos=not ends, stop_token_ids=set(ends))

    def _request(self, number: int, prompt: list[int], max_tokens: int, **options: Any) -> Any:
        config = self.genai.GenerationConfig(max_new_tokens=max_tokens, do_sample=False, **options)
        return self.pipeline.add_request(number, self.tensor(self.numpy.array([prompt], dtype="int64")), config)

    def drop(self, number: int) -> None:
        if handle := self.handles.pop(number, None):
            handle.stop()

    def step(self) -> tuple[list[RowNews], float]:
        """Return the updates of all requests, and the share of the KV cache in use."""
        self.pipeline.step()
        news = []
        for number, handle in list(self.handles.items()):
            tokens = [token for output in _outputs(handle) for token in output.generated_ids]
            status, states = handle.get_status(), self.genai.GenerationStatus
            ended = status != states.RUNNING
            if tokens or ended:
                news.append(RowNews(number, tokens, ended, TOO_SMALL if status == states.IGNORED else None))
            if ended:
                del self.handles[number]
        return news, self.pipeline.get_metrics().cache_usage / 100

    def score(self, text: list[int]) -> list[float]:
        """Return the log-probability of each token after the first: the pipeline echoes them with the prompt."""
        handle = self._request(0, text, 1, ignore_eos=True, echo=True, logprobs=1)
        values: list[float] = []
        while self.is_busy():
            self.pipeline.step()
            values += [value for output in _outputs(handle) for value in output.generated_log_probs]
        return values[1 : len(text)]


def _outputs(handle: Any) -> list[Any]:
    """Return the outputs that can be read now."""
    outputs: list[Any] = []
    while handle.can_read():
        outputs += handle.read().values()
    return outputs
