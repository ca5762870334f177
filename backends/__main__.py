"""`python -m backends` is `sweep backends`, also where sweep is not installed."""

import sys

from sweep.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["backends", *sys.argv[1:]]))
