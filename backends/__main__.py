"""`python -m backends ARGUMENTS` is `sweep backends ARGUMENTS`."""

import sys

from sweep.__main__ import main

sys.exit(main(["backends", *sys.argv[1:]]))
