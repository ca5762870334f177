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
# The issuers whose keys are known by their shape, with what is masked; docs/backends.md has their table.
SHAPES = {
    "Anthropic, DeepSeek, OpenAI, OpenRouter, Langfuse": r"\bsk-[\w-]{20,}",
    "Atlassian": r"\bATATT3[\w=-]{30,}",
    "AWS": r"\bA(?:KIA|SIA|BIA|CCA)[0-9A-Z]{16}\b|(?<=X-Amz-Signature=)[\w%]{16,}"
    r"|(?<=X-Amz-Security-Token=)[\w%+/=-]{16,}|(?<=X-Amz-Credential=)[\w%/+-]{16,}",
    "Azure": r"(?<=AccountKey=)[\w+/=-]{20,}|(?<=SharedAccessKey=)[\w+/=-]{20,}|(?<=[?&]sig=)[\w%+/=-]{16,}",
    "Cerebras": r"\bcsk-\w{20,}",
    "Databricks": r"\bdapi[0-9a-f]{32}(?:-\d)?\b",
    "DigitalOcean": r"\bdo[opr]_v1_[0-9a-f]{40,}",
    "Docker": r"\bdckr_(?:pat|oat)_[\w-]{20,}",
    "Fireworks": r"\bfw_[A-Za-z0-9]{20,}",
    "GitHub": r"\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    "GitLab": r"\bgl(?:pat|dt|rt|cbt|ptt|agent|soat)-[\w-]{16,}",
    "Google": r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}|(?<=X-Goog-Signature=)[\w%]{16,}",
    "Grafana": r"\bgl(?:sa|c)_[\w+/=]{20,}",
    "Groq": r"\bgsk_[A-Za-z0-9]{20,}",
    "Hashicorp Vault": r"\bhv[sbr]\.[\w-]{20,}",
    "Hugging Face": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "LangSmith": r"\blsv2_(?:pt|sk)_\w{20,}",
    "npm, PyPI": r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{40,}",
    "NVIDIA": r"\bnvapi-[\w-]{20,}",
    "Perplexity": r"\bpplx-[A-Za-z0-9]{20,}",
    "Pinecone": r"\bpcsk_\w{20,}",
    "Replicate": r"\br8_[A-Za-z0-9]{20,}",
    "SendGrid": r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "Slack": r"\bxox[abeoprs]-[\w-]{10,}|\bxapp-[\w-]{20,}|(?<=hooks\.slack\.com/services/)[\w/]{20,}",
    "Stripe": r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|\bwhsec_[\w+/=]{20,}",
    "Together": r"\btgp_v1_[\w-]{20,}",
    "Twilio": r"\bSK[0-9a-f]{32}\b",
    "Weights & Biases": r"\bwandb_v1_\w{20,}",
    "xAI": r"\bxai-[A-Za-z0-9]{20,}",
    "web tokens (JWT)": r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    "private keys (PEM, OpenSSH, PGP, age)": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)|\bAGE-SECRET-KEY-1[0-9A-Z]{30,}",
    "a URL's password, or key as its user": r"(?<=://)[^\s/:@]*:[^\s/@]+(?=@)|(?<=://)(?=[^\s/@]*\d)[^\s/:@]{16,}(?=@)"
    r"|(?<=[?&]key=)(?=\S*\d)[\w-]{16,}",
    "headers": r"(?<=Bearer )(?=\S*\d|\S{24})[\w.~+/=-]{8,}|(?<=ookie: )[^\r\n'\"]{8,}",
}
VALUE = re.compile("|".join(SHAPES.values()))
PAIR = re.compile(r"([\w-]+)(['\"]?\s*[:=]\s*['\"]?)([^\s'\",;{}\[\]]+)")  # a name and its value, in a message
# The same in what engines print: their tokens are mostly words of a vocabulary, or counted.
LOGGED_PAIR = re.compile(
    r"(?i)(?<![\w-])(?P<name>[\w-]{0,40}?(?:token|secret|password|passwd|passphrase|credentials?|api[_-]?key|(?:access|account|private)[_-]key"
    r"|authorization|connection[_-]?string))"
    r"(?P<sign>['\"]?\s*(?:[:=]|=>|(?<=['\"])\s*,)\s*(?:b?['\"])?(?:(?:basic|token|digest|apikey)\s+)?)"
    r"(?P<secret>(?=[^\s'\",;{}()\[\]]*\d)(?=[^\s'\",;{}()\[\]]*[a-z])[^\s'\",;{}()\[\]<>|]{8,})"
)
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
    """Return a text without these values, the shapes above, and the values of pairs that are named as secrets."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, MASK)
    return LOGGED_PAIR.sub(lambda pair: f"{pair['name']}{pair['sign']}{MASK}", VALUE.sub(MASK, text))
