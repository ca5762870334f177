"""`python -m sweep +experiment=throughput_bound`: compose, plan, check, run, report. See README.md."""

import sys
from collections.abc import Sequence

from sweep.config import ConfigError, Halted
from sweep.options import ConfigPath
from sweep.run import run

USAGE = """\
usage: python -m sweep [+experiment=NAME] [key=value | key=v1,v2,... ]...

Runs an experiment, or without one the single configuration of backend, model, workload and load. A list of values makes
(or replaces) an axis. The same command again runs only what is not done.

  python -m sweep +experiment=throughput_bound
  python -m sweep +experiment=throughput_bound load.batch_size=1,8 backend=vllm dry_run=true
  python -m sweep backend=vllm model=tiny-llama workload=qa load=closed load.concurrency=4

experiments: {experiments}
backends:    {backends}
models:      {models}
workloads:   {workloads}
loads:       {loads}
hardware:    {hardware}
clusters:    {clusters}
tracking:    {tracking}

Everything else that can be set, with what it means: conf/config.yaml, and the fields in conf/<group>/<name>.yaml.
dry_run=true prints the plan and starts nothing; fresh=true moves old results aside; out=DIR says where they go.
Exit status: 0; 1 a trial failed, the deadline left some, or the run had to stop; 2 bad input; 130 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print(_usage())
        return 0
    try:
        return run(arguments)
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was running; the same command goes on from here", file=sys.stderr)
        return 130
    except Halted as error:
        print(f"stopped: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _usage() -> str:
    plurals = {"experiment", "backend", "model", "workload", "load", "cluster"}
    groups = (*plurals, "hardware", "tracking")
    options = ConfigPath.of_user()
    names = {f"{group}s" if group in plurals else group: ", ".join(options.choices(group)) for group in groups}
    return USAGE.format(**names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
