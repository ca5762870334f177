"""`python -m analysis RUN` is `sweep report RUN`."""

import sys

from sweep.__main__ import main

sys.exit(main(["report", *sys.argv[1:]]))
