"""A running endpoint that speaks OpenAI's protocol (or TGI's): nothing is launched, installed or stopped."""

import os

from pydantic import field_validator

from backends.base import Backend, Host
from backends.declarations import Traits


class OpenAI(Backend):
    """The address of the endpoint and its way of being asked; the model is the name that it serves."""

    traits = Traits(attachable=True)

    url: str  # http(s)://host[:port][/base], with or without /v1
    api_key_env: str | None = None  # NAME of the environment variable that holds the key: the key itself goes nowhere

    continuous_usage: bool = True
    metrics_path: str | None = None

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise ValueError("expected the NAME of an environment variable, never the key itself")
        return name

    def unavailable(self, host: Host) -> str | None:
        if self.api_key_env and self.api_key_env not in os.environ:
            return f"backend.api_key_env={self.api_key_env}: no such environment variable is set; export it"
        return None
