"""The `sweep` command (`python -m sweep` in a checkout): every error becomes one line and an exit status."""

import sys
from collections.abc import Sequence

from sweep.commands import dispatch
from sweep.config import ISSUE_AGAIN, ConfigError, DamagedFile, Halted


def main(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status."""
    try:
        return dispatch(arguments)
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except DamagedFile as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before anything was started; run the same command again to continue", file=sys.stderr)
        return 130
    except Halted as error:
        print(f"stopped: {' '.join(str(error).split())}", file=sys.stderr)
        return ISSUE_AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
