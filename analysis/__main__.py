"""`python -m analysis RUN`: rebuild summary.csv, figures and report.html of a run from its files; print the table."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from analysis import DamagedFile, RunNotFound, Summary, open_results, write_all


def main(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status: 0, or 2 if there is no run that can be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", metavar="RUN", help="folder of a run, e.g. results/throughput_bound")
    folder = parser.parse_args(arguments).run
    try:
        results = open_results(folder)
        write_all(results)
        console = Console(highlight=False)
        console.print(Summary(results))
        console.print(f"report: {results.run.paths.report}", soft_wrap=True)
    except (RunNotFound, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
