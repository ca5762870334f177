"""The one rule for secrets: names and values that look like one, and a text without them."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress

NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|(ACCESS|ACCOUNT|PRIVATE)_KEY(_ID)?|AUTHORIZATION"
    r"|COOKIE|CONNECTION_?STRING|(^|_)(PAT|DSN|AUTH))$",
    re.IGNORECASE,
)
# Keys by the beginnings that their issuers give them, web tokens, and the password of a URL.
VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abp]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b|\bya29\.[\w-]{20,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
    r"|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)|(?<=AccountKey=)[\w+/=-]{20,}"
)
PAIR = re.compile(r"([\w-]+)(['\"]?\s*[:=]\s*['\"]?)([^\s'\",;{}\[\]]+)")  # a name and its value, in a message
MASK = "***"
SHORTEST = 8  # characters of a variable's value that is masked wherever it stands: shorter ones may be ordinary words


def is_secret(name: str, value: object = "") -> bool:
    """Return whether a setting, variable or header holds a secret, by its name or its value."""
    return bool(NAME.search(name.replace("-", "_"))) or (isinstance(value, str) and VALUE.search(value) is not None)


def secret_within(name: str, value: object, inherited: bool = False) -> str | None:
    """Return the path of a setting's first secret, e.g. "user.api_key", or None.

    Searched are mappings, lists and texts of JSON; `inherited`: under a name that is a secret's. A number is a secret
    too, except in the name of a token, of which engines have counts.
    """
    named = inherited or is_secret(name.rpartition(".")[2])
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        with suppress(ValueError):  # a template, or the engine's own notation
            value = json.loads(value)
    if isinstance(value, Mapping):
        return next(filter(None, (secret_within(f"{name}.{key}", inner, named) for key, inner in value.items())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (secret_within(name, inner, inherited) for inner in value)), None)
    if isinstance(value, str):
        return name if named or is_secret("", value) else None
    a_number = isinstance(value, int | float) and not isinstance(value, bool)
    return name if named and a_number and not name.lower().endswith("token") else None


def secret_values(environ: Mapping[str, str]) -> set[str]:
    """Return the values of variables that hold secrets, to be masked wherever they stand.

    Of a variable any name that ends with KEY is a secret's. A number is no secret: JSON has many.
    """
    secrets = (content for key, content in environ.items() if NAME.search(key) or key.upper().endswith("KEY"))
    return {content for content in secrets if len(content) >= SHORTEST and not content.isdecimal()}


def masked_here(text: str) -> str:
    """Return a text without what looks like a secret, and without the secrets of this process's environment."""
    return masked(text, secret_values(os.environ))


def masked_message(text: str, secrets: set[str]) -> str:
    """Return a message about what a user typed, masked, and without the value of any name that is a secret's."""
    text = PAIR.sub(lambda pair: f"{pair[1]}{pair[2]}{MASK}" if is_secret(pair[1]) else pair[0], text)
    return masked(text, secrets)


def masked(text: str, secrets: set[str] | frozenset[str] = frozenset()) -> str:
    """Return a text without these values, and without anything that looks like a key or a URL's password."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, MASK)
    return VALUE.sub(MASK, text)
