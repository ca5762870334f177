"""`python -m analysis wandb RUN`: sends a finished run to W&B."""

import sys

from analysis.tracking import publish

if __name__ == "__main__":
    if sys.argv[1:2] != ["wandb"]:
        sys.exit("usage: python -m analysis wandb RUN [--project NAME] [--entity NAME]")
    sys.exit(publish.main(sys.argv[2:]))
