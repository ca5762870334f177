"""The one rule for secrets: which names and values look like a secret, and how to remove them from a text."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|(ACCESS|ACCOUNT|PRIVATE|SECRET|SIGNING|SUBSCRIPTION)_KEY(_ID)?|AUTHORIZATION"
    r"|COOKIE|CONNECTION_?STRING|_PWD|(^|_)(PAT|DSN|AUTH))$",
    re.IGNORECASE,
)
# The shape of each issuer's keys; docs/backends.md has their table.
_TABLE = Path(__file__).with_name("secret_shapes.txt").read_text(encoding="utf-8").splitlines()
SHAPES = dict(line.split("\t") for line in _TABLE if not line.startswith("#"))
# Where a word begins: also after an escape's letter or digit, and after the word that Telegram puts before its keys.
BEGIN = r"(?:(?<!\w)|(?<=[\d[;]m)|(?<=\\[abfnrtv])|(?<=%[\da-fA-F]{2})|(?<=\\u[\da-fA-F]{4})|(?<=/bot)|(?=-----))"
VALUE = re.compile(rf"{BEGIN}(?=[\w$-])(?:{'|'.join(SHAPES.values())})")
COLOUR = re.compile(r"\x1b\[[\d;:]*m")  # a log's colours stand between a name, its sign and its value
# A name and its value, in a message.
PAIR = re.compile(r"(?<![\w-])([\w-]+)(['\"]?\s*[:=]\s*['\"]?)([^\s'\",;{}\[\]]+)")
# The same in an engine's output, where a "token" is mostly a word of the vocabulary, or a count.
_SECRETS_NAME = (
    r"token|secret|password|passwd|(?<=[_;])pwd|passphrase|credentials?|api[_-]?key|authorization|connection[_-]?string"
    r"|(?:access|account|private|secret|signing|subscription)[_-]?key(?:[_-]id)?|cookie|(?<=[?&'\"])auth"
    r"|(?-i:(?<=[A-Z0-9]_)(?:KEY|PASS))"
)
LOGGED_PAIR = re.compile(
    rf"(?i)(?<![\w-])(?P<name>(?P<flag>--)?[\w;-]{{0,40}}?(?:{_SECRETS_NAME}))"
    r"(?P<sign>(?:['\"]?\s*(?:[:=]|=>|(?<=['\"])\s*,)\s*|(?(flag)\s+|(?!)))(?:\w*[\[(])?(?:b?['\"])?"
    r"(?:(?:basic|token|digest|apikey)\s+)?)"
    r"(?P<secret>(?!\d+\.\d+[a-z/])(?=[^\s'\",;{}()\[\]]{0,200}?\d)(?=[^\s'\",;{}()\[\]]{0,200}?[a-z])[^\s'\",;{}()\[\]<>|]{8,})"
)
# A key within a sentence: "the API key 0a1b… is invalid".
SPOKEN = re.compile(
    r"(?i)(\b(?:api[ _-]?key|password|(?:client[ _])?secret|token(?=\s[0-9a-f]{40}\b))\s+|\s-u \w+:(?=[^\s/:]{8}))"
    r"(?=\S*\d)(?=\S*[a-z])(?:[\w+=~.-]{20,}|(?<=:)[^\s/:]+)"
)
# A password need have no digit; a quoted one may have spaces.
PASSWORD = re.compile(
    r"(?i)(pass(?:word|wd|phrase)['\"]?\s*(?:=|:\s*(?=['\"]))\s*['\"]?)(?!none|null|true|false|[*$<{%\[(])"
    r"(?:(?<=['\"])[^'\"\n]{6,}|[^\s'\",;)]{8,})"
)
MASK = "***"
SHORTEST = 8  # minimum length of a variable's value to mask everywhere: shorter values may be ordinary words


def is_secret(name: str, value: object = "") -> bool:
    """Return whether a setting, variable or header contains a secret, judged by its name or value."""
    return bool(NAME.search(name.replace("-", "_"))) or (isinstance(value, str) and VALUE.search(value) is not None)


def secret_within(name: str, value: object, inherited: bool = False) -> str | None:
    """Return the path of the first secret in a setting, e.g. "user.api_key"; None if there is no secret.

    Mappings, lists and JSON texts are searched. `inherited`: the setting is nested under a secret's name. Numbers are
    secrets too, except under a name that ends in "token", since engines have token counts.
    """
    named = inherited or is_secret(name.rpartition(".")[2])
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        with suppress(ValueError):  # not JSON: a template, or the engine's own notation
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
    """Return the values of variables that hold secrets, to be masked wherever they occur.

    Any variable whose name ends with KEY is a secret, unless its value is a number: JSON contains many numbers.
    """
    secrets = [content for key, content in environ.items() if NAME.search(key) or key.upper().endswith("KEY")]
    secrets += [content for key, content in environ.items() if key.lower().endswith("_proxy") and "@" in content]
    return {content for content in secrets if len(content) >= SHORTEST and not content.isdecimal()}


def masked_here(text: str) -> str:
    """Return a text without anything that looks like a secret, and without secrets from this process's environment."""
    return masked(text, secret_values(os.environ))


def masked_message(text: str, secrets: set[str]) -> str:
    """Return a message about a user's input, with secrets and the values of secret names masked."""
    text = PAIR.sub(lambda pair: f"{pair[1]}{pair[2]}{MASK}" if is_secret(pair[1]) else pair[0], text)
    return masked(text, secrets)


def masked(text: str, secrets: set[str] | frozenset[str] = frozenset()) -> str:
    """Return a text with these values masked, and key-like strings and the values of secret names as well."""
    text = COLOUR.sub("", text)
    for secret in sorted(secrets, key=len, reverse=True):  # longest first: one secret may be a prefix of another
        text = text.replace(secret, MASK)
    text = LOGGED_PAIR.sub(lambda pair: f"{pair['name']}{pair['sign']}{MASK}", VALUE.sub(MASK, text))
    return PASSWORD.sub(rf"\g<1>{MASK}", SPOKEN.sub(rf"\g<1>{MASK}", text))
