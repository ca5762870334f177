"""For all tests: they share this machine on purpose, with each other and with those of another checkout."""

import os

from sweep.node.machine.sharing import VARIABLE

os.environ.setdefault(VARIABLE, "tests")
