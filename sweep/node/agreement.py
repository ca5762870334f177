"""Greedy-output agreement of an engine with transformers, measured once per launch.

agreement = mean over fixed prompts of (length of the matching prefix / length of the reference), so that "fast because
wrong" is visible. The reference is computed in float32, or in the model's own dtype where that does not fit: once per
model and node, before an engine takes the memory. No failure here fails a trial: agreement_reference has its reason.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from backends.base import EnvironmentChoice, EnvironmentSpec, Launch, Progress
from backends.launch import task
from backends.launch.server import ENGINE_ENVIRON, Engine, inherited_environment
from backends.prepare import environments
from backends.prepare.build_once import build_once
from sweep.config import ROOT, content_hash, first_line
from sweep.node.work import Work

AGREEMENT_VERSION = 1  # part of the cache's key: raise it when the reference is made in another way
PROMPTS = (
    "The river rose in the night, and by morning",
    "List three reasons why a measurement may be repeated:",
    "def mean(values):\n    ",
    "She opened the letter slowly, because the last one had brought nothing but bad news, and read",
)
TOKENS = 32  # after each prompt
ENVIRONMENT = EnvironmentChoice(cpu="cpu", cuda="transformers")  # one of conf/environment that has transformers
REFERENCE_TIMEOUT = 3600.0  # s; a large model on a CPU is slow
ANSWER_TIMEOUT = 300.0  # s, of one prompt


@dataclass(frozen=True)
class Reference:
    """The tokens that transformers generates after each prompt."""

    prompts: list[list[int]]  # token ids, special tokens included
    tokens: list[list[int]]
    ends: list[int]  # the model's EOS tokens
    made_by: str  # "transformers 5.19.0 float32"


def reference(work: Work, launch: Launch, progress: Progress) -> Reference | str:
    """Return the tokens that the model of a deployment should give, or in a few words why they are not known.

    Called before an engine is launched: it uses its GPUs, cores and memory.
    """
    backend, model = work.deployment.backend, work.deployment.model
    if not work.settings.agreement:
        return "none: agreement=false"
    if not backend.computes_model:
        return "none: this engine computes no model"
    if not backend.launches:
        return "none: the weights of a running endpoint are not known"
    if not model.comparable:
        return "none: on random weights agreement says nothing"
    try:
        spec = environments.resolve(ENVIRONMENT, "cuda" if launch.gpus else "cpu")
        fingerprint = environments.fingerprint(spec)
        content = [AGREEMENT_VERSION, model.digest(work.cache), model.tokenizer, PROMPTS, TOKENS, fingerprint]
        path = work.cache / "agreement" / f"{content_hash(content, 16)}.json"

        def compute(partial: Path) -> None:
            partial.write_text(json.dumps(_compute(spec, model, launch, work.cache, progress)))

        build_once(path, compute, f"answers of {model.name} by transformers", progress)
        return Reference(**json.loads(path.read_text()))
    except (environments.EnvironmentFailed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        return f"none: {type(error).__name__}: {first_line(error)}"


def _compute(spec: EnvironmentSpec, model: Any, launch: Launch, cache: Path, progress: Progress) -> dict[str, Any]:
    """Return the fields of a Reference, from a process of its own in an environment with transformers."""
    # An engine that needs no Python at all (llama.cpp) is compared with it too: report what the time is spent on.
    why = "for transformers, which engines are compared with; agreement=false leaves it out"
    python = environments.prepare(spec, cache, lambda text: progress(f"{text} ({why})")).python
    folder, tokenizer = model.prepare(cache, progress), model.load_tokenizer(cache)
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    progress(f"computing the reference answers of {model.name}")
    device = "cuda" if launch.gpus else "cpu"
    job = {"model": str(folder), "device": device, "prompts": prompts, "tokens": TOKENS}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with task.program([python, "-m", "backends.host.reference_tokens"], _reference_environ(launch), **pipes) as process:
        answer, errors = process.communicate(json.dumps(job), timeout=REFERENCE_TIMEOUT)
    if process.returncode != 0:
        raise ValueError((errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    reply = json.loads(answer.strip().splitlines()[-1])
    return {"prompts": prompts, "tokens": reply["tokens"], "ends": reply["ends"], "made_by": reply["reference"]}


def _reference_environ(launch: Launch) -> dict[str, str]:
    """Return the environment that an engine would have: without secrets, with the launch's own GPUs and threads."""
    own = {"OMP_NUM_THREADS": str(launch.threads), "CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)}
    return {**inherited_environment(), **ENGINE_ENVIRON, "PYTHONPATH": str(ROOT), **own}


def compare(work: Work, engine: Engine, expected: Reference | str) -> dict[str, Any]:
    """The columns agreement (0..1, or null) and agreement_reference of a running engine."""
    if isinstance(expected, str):
        return {"agreement": None, "agreement_reference": expected}
    try:
        tokenizer = work.deployment.model.load_tokenizer(work.cache)
        references = zip(PROMPTS, expected.prompts, expected.tokens, strict=True)
        answers = [_share(engine, tokenizer, expected.ends, *reference) for reference in references]
    except (httpx.HTTPError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        problem = f"none: the engine's answer: {type(error).__name__}: {first_line(error)}"
        return {"agreement": None, "agreement_reference": problem}
    shares = [share for share in answers if share is not None]
    if not shares:
        return {"agreement": None, "agreement_reference": "none: the model ends every answer at once"}
    return {"agreement": sum(shares) / len(shares), "agreement_reference": expected.made_by}


def _share(
    engine: Engine, tokenizer: Tokenizer, ends: list[int], text: str, prompt: list[int], tokens: list[int]
) -> float | None:
    """Return the share of one reference that an engine repeats: by token ids if it returns them, else by its text.

    None if the reference is empty: it ends at once, and so would this engine; or its tokens have no text.
    """
    backend = engine.backend
    if not backend.ignores_eos:
        tokens = list(takewhile(lambda token: token not in ends, tokens))
        if not tokens:
            return None
    answer = ask(engine, prompt if backend.token_ids and backend.api == "completions" else text, len(tokens))
    if isinstance(answer, str):
        tokens = _ids(tokenizer, tokenizer.decode(tokens))
        answer = _ids(tokenizer, answer)
    return matching_prefix(answer, tokens) / len(tokens) if tokens else None


def matching_prefix(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """Return the number of tokens that are the same from the beginning."""
    equal = [a == b for a, b in zip(tokens, expected, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def ask(engine: Engine, prompt: str | list[int], tokens: int) -> list[int] | str:
    """Return the engine's greedy continuation through its ordinary API: token ids if it gives them, else text."""
    backend, model = engine.backend, engine.launch.served_name
    with httpx.Client(base_url=engine.url, timeout=ANSWER_TIMEOUT, trust_env=False) as http:
        if backend.api == "tgi":
            parameters = {"max_new_tokens": tokens, "do_sample": False, "details": True}
            answer = http.post("/generate", json={"inputs": prompt, "parameters": parameters}).raise_for_status().json()
            return [token["id"] for token in answer["details"]["tokens"]]
        if backend.api != "completions":
            raise ValueError(f"api={backend.api} gives no plain continuation")
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **backend.extra_body}
        body |= {"ignore_eos": True} if backend.ignores_eos else {}
        response = http.post("/v1/completions", json={**body, "return_token_ids": True})
        if response.status_code in (400, 422):  # an engine that has no such key
            response = http.post("/v1/completions", json=body)
        choice: Mapping[str, Any] = response.raise_for_status().json()["choices"][0]
        ids = choice.get("token_ids")
        return list(ids) if ids else str(choice["text"])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
