"""The tables of vLLM and llama.cpp, read from their sources, against the parsers of the installed engines."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from backends.installed import configured
from backends.tables.table import load

pytestmark = pytest.mark.engine

PARSER = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
actions = [action for action in make_arg_parser(FlexibleArgumentParser())._actions if action.option_strings]
choices = lambda action: [str(each) for each in action.choices if each is not None] if action.choices else None
print(json.dumps([[action.option_strings, choices(action), action.nargs == 0] for action in actions]))
"""


def test_vllms_table_is_its_own_parsers(environments):
    python = environments(configured("vllm")).python
    answer = subprocess.run([python, "-c", PARSER], capture_output=True, text=True, check=True)
    actions = json.loads(answer.stdout.splitlines()[-1])
    table = load("vllm")
    flags = {name[2:]: action[1:] for action in actions for name in action[0] if name.startswith("--")}
    assert set(flags) - {"help"} == {*table.flags, *table.aliases}
    for name, (choices, bare) in flags.items():
        kind = table.flags.get(name)
        if isinstance(kind, list):
            assert set(choices) <= set(kind), name  # nothing that it takes is refused
        elif kind is not None:
            assert bare == (kind == "bool"), name


def test_llama_cpps_table_is_its_own_helps(environments):
    binary = environments(configured("llamacpp")).binary
    assert binary is not None
    answer = subprocess.run([str(Path(binary)), "--help"], capture_output=True, text=True, check=True)
    heads = [re.split(r"\s{3,}", line)[0] for line in answer.stdout.splitlines() if line.startswith("-")]
    names = {name for head in heads for name in re.findall(r"(?<![\w-])--([a-z0-9][\w.-]*)", head)}
    table = load("llamacpp")
    assert len(names) > 200
    assert {name for name in names if len(name) > 1} <= {*table.flags, *table.aliases, *table.names}
