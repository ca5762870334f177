"""A running endpoint with OpenAI's (or TGI's) protocol. sweep does not install, launch or stop it."""

import os
from typing import Literal

from pydantic import Field, field_validator

from backends.base import Backend, Host
from backends.declarations import VLLM_BLOCK, Traits, Wire
from sweep.base.records import key_header


class OpenAI(Backend):
    """The endpoint's address and protocol. `model` is the name that it serves."""

    traits = Traits(attachable=True)
    wire = Wire(prefix_block=VLLM_BLOCK)

    url: str  # http(s)://host[:port][/base][?query], with or without /v1 or another version
    path: str | None = Field(default=None, pattern=r"^/[!-~]*$")  # after the path of url; null: the api's default
    api_key_env: str | None = None  # NAME of the environment variable with the key, which is never recorded
    auth_header: str | None = Field(default=None, pattern=r"^[\w-]+$")  # for the key, e.g. api-key; null: the api's
    auth_scheme: str | None = None  # word before the key; null: Bearer in Authorization, no word in another header
    max_tokens_field: Literal["max_tokens", "max_completion_tokens", "max_output_tokens"] = "max_tokens"

    continuous_usage: bool = True
    metrics_path: str | None = None

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError("expected the NAME of an environment variable, never the key itself")
        return name

    def key_headers(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env or "")
        return dict([key_header(self.api, self.auth_header, self.auth_scheme, key)]) if key else {}

    def unavailable(self, host: Host) -> str | None:
        if self.api_key_env and not os.environ.get(self.api_key_env):
            state = "is empty" if self.api_key_env in os.environ else "is not set"
            return f"backend.api_key_env={self.api_key_env}: this environment variable {state}; export it"
        return super().unavailable(host)
