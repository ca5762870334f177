"""Shell completion: the script that a shell reads once, and the words that it asks for at every tab."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from sweep.config import CONF
from sweep.keys import Key, keys_of
from sweep.options import ConfigPath
from sweep.plan.compose import GROUPS

# Bash breaks words at `=`: what stands before the last one is on the line already.
SCRIPTS = {
    "bash": """\
_sweep() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\\n'
    local current=${line##*[[:space:]]}
    COMPREPLY=($(IFS=$' \\t\\n'; set -f; sweep completion --words ${line% *} "$current" 2>/dev/null))
    [[ $current == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
}
complete -o default -F _sweep sweep""",
    "zsh": """\
#compdef sweep
_sweep() {
    local -a candidates=(${(f)"$(sweep completion --words ${words[1,CURRENT-1]} "$words[CURRENT]" 2>/dev/null)"})
    if (( $#candidates )); then
        compadd -S '' -- ${(M)candidates:#*=}
        compadd -- ${candidates:#*=}
    else
        _files
    fi
}
compdef _sweep sweep""",
    "fish": """\
complete -c sweep -a '(sweep completion --words (commandline -opc) (commandline -ct) 2>/dev/null)'""",
}


def candidates(commands: Iterable[str], words: Sequence[str], options: ConfigPath) -> list[str]:
    """The possible completions of the last word after `sweep`."""
    *before, current = words or [""]
    command = before[0] if before and before[0] in commands else None
    match command:
        case None:
            matches = [*(commands if not before else ()), *_overrides(options, before, current)]
        case "run" | "selfcheck":
            matches = list(_overrides(options, before, current))
        case "status" | "report":
            matches = [str(path.parent) for path in Path("results").glob("*/plan.jsonl")]
        case "backends":
            matches = [*(["install"] if len(before) == 1 else ()), *options.choices("backend")]
        case "completion":
            matches = list(SCRIPTS)
        case _:
            matches = []
    return [word for word in matches if word.startswith(current)]


def _overrides(options: ConfigPath, before: Sequence[str], current: str) -> Iterator[str]:
    """Overrides that begin as the present word does: values after `=`, else keys."""
    name, equals, value = current.partition("=")
    if equals:
        typed = value[: value.rfind(",") + 1]  # the values of an axis before the one that is being typed
        yield from (f"{name}={typed}{choice}" for choice in _values(options, before, name))
        return
    yield from ("--config-dir", "+experiment=")
    yield from (f"{group}=" for group in GROUPS)
    yield from (f"{key.name}=" for key in _keys(options, before, name.partition(".")[0] if "." in name else ""))


def _values(options: ConfigPath, before: Sequence[str], name: str) -> Sequence[str]:
    plain = name.removeprefix("+")
    if plain in (*GROUPS, "experiment"):
        return options.choices(plain)
    keys = _keys(options, before, plain.partition(".")[0] if "." in plain else "")
    return next((key.allowed for key in keys if key.name == plain), ())


def _keys(options: ConfigPath, before: Sequence[str], group: str) -> list[Key]:
    """The keys of the option that is chosen on the line, else of the one in conf/config.yaml."""
    if group not in GROUPS:
        return keys_of(options)
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    option = next(entry[group] for entry in defaults if group in entry)
    for word in before:
        if word.startswith(f"{group}="):
            option = word.removeprefix(f"{group}=").partition(",")[0]
    return keys_of(options, group, option)
