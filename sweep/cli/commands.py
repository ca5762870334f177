"""The subcommands of `sweep`: each reads its arguments and only then imports the package that does the work.

The analysis imports pandas, SciPy and matplotlib, three seconds of processor time that no `--help` should take.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import Field, TypeAdapter, ValidationError
from rich.table import Table

from sweep.base.config import GROUPS, POINT_GROUPS, RUN_GROUPS, ConfigError, cache_directory, first_line, one_of
from sweep.base.options import PRIMARY, ConfigPath
from sweep.base.wording import FORMATS, count, flow
from sweep.cli.output import make_console
from sweep.cli.tracebacks import traced

if TYPE_CHECKING:
    from analysis.answers.screen import Screen
    from analysis.results import RunResults
    from analysis.table import Output

TOP = """\
usage: sweep COMMAND ...
       sweep [+experiment=NAME] [KEY=VALUE | KEY=V1,V2,...] ...      the same as sweep run

{commands}

  sweep +experiment=throughput_bound
  sweep +experiment=throughput_bound load.batch_size=1,8 backend=vllm dry_run=true
  sweep backend=vllm model=tiny-llama workload=qa load=closed load.concurrency=4

{choices}

sweep COMMAND --help explains a command; sweep backends NAME lists the keys of a backend; sweep --version.
Exit status: 0 finished; 1 finished, and trials failed; 2 bad input; 75 run the same command again; 130 interrupted.
Status 75 means that the run had to stop, or that trials are pending after the deadline.
sweep reissue ARGUMENTS runs sweep run ARGUMENTS, and runs it again after status 75."""
RUN_HELP = "a results folder, its name under results/, or s3://bucket/run"
NOT_JUDGED = 3  # exit status of `compare`: no --fail-if condition holds, but at least one was undecided
ARGUMENTS_OF_RUN = "[--config-dir DIR] [+experiment=NAME] [KEY=VALUE | KEY=V1,V2,...] ..."
RUN = """\
usage: sweep run {arguments}

Runs an experiment, or without +experiment the single configuration of backend, model, workload and load. A list of
values makes (or replaces) an axis. Running the same command again measures only what is not yet done. With dry_run=true
the command prints the plan and starts nothing.

{choices}

sweep run GROUP=NAME --help lists the keys of that option; these are the keys of every run:
"""


class Parser(argparse.ArgumentParser):
    """Parses the arguments of one subcommand, whose docstring is its help text. Raises ConfigError for bad input."""

    def __init__(self, command: Callable[[list[str]], int], taken: str | None = None, add_help: bool = True) -> None:
        """`taken`: the arguments to show in the usage line, if this parser does not define them."""
        name = f"sweep {_typed_name(command)}"
        usage = None if taken is None else f"{name} {taken}"
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(name, usage, command.__doc__, formatter_class=layout, allow_abbrev=False, add_help=add_help)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _of_all_rows(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of a command that shows a run's rows; `all=true` is an alias of `--all-rows`."""
    shown = "include everything measured in the folder, not only the current plan; also typed all=true"
    parser.add_argument("--all-rows", action="store_true", help=shown)
    typed = {"all=true": ["--all-rows"], "all=false": []}
    if "--all" in arguments and parser.prog != "sweep summary":
        raise ConfigError("--all: expected --all-rows")
    return parser.parse_intermixed_args([part for argument in arguments for part in typed.get(argument, [argument])])


def _printed(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of a command that prints an Output, including its format and an optional file."""
    parser.add_argument("--format", metavar="FORMAT", default="text", help=f"{', '.join(FORMATS)}; default: text")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: print to standard output")
    options = _of_all_rows(parser, arguments)
    if options.format not in FORMATS:
        raise ConfigError(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    return options


def _print(output: "Output", options: argparse.Namespace) -> None:
    """Print an output in the chosen format, or write it to the chosen file."""
    from sweep.base.whole_file import write_whole

    if options.output is None:
        output.print(options.format, make_console(160))
        return
    try:
        write_whole(options.output, output.written(options.format))
    except OSError as error:
        raise ConfigError(f"--output {options.output}: {first_line(error)}") from None


def _name_others(name: str, others: int) -> None:
    """Print how many rows of other plans the output does not show."""
    if others:
        rows = count(others, "row")
        print(f"{name}: {rows} of other plans not shown; add all=true to show them", file=sys.stderr)


def _opened(run: str, all_rows: bool) -> "RunResults":
    """Open the results of a run, and print how many rows of other plans are not shown. Raises ConfigError."""
    from analysis import RunNotFound, open_results
    from sweep.disk.stored_run import run_place

    try:
        results = open_results(run_place(run), all_rows)
    except RunNotFound as error:
        raise ConfigError(str(error)) from None
    _name_others(results.run.paths.out.name, results.run.others)
    return results


def run(arguments: list[str]) -> int:
    """Run an experiment, or a single configuration: compose, plan, check, run, report."""
    folders, overrides = _config_dirs(arguments)
    if not overrides or {"-h", "--help"} & set(arguments):
        _help_of_run(overrides, ConfigPath.of_user(folders))
        return 0
    from sweep.cli.run import run

    return run(overrides, folders)


def reissue(arguments: list[str]) -> int:
    """Run an experiment, and repeat the command, with back-off, whenever it ends with exit status 75.

    sweep reissue +experiment=NAME KEY=VALUE...     the arguments of sweep run

    Exit status 75 means that a run had to stop (Ray gone, a full disk) before it was finished. A command that was
    killed is repeated too. `reissue` ends with the status of the last command, or after its deadline.
    """
    folders, overrides = _config_dirs(arguments)
    if not overrides or {"-h", "--help"} & set(arguments):
        Parser(reissue, ARGUMENTS_OF_RUN).print_help()
        return 0
    from sweep.cli.reissue import Reissuer

    return Reissuer(overrides, folders).run()


def status(arguments: list[str]) -> int:
    """Print what is done, what is running where, what failed and why, and how much time is left."""
    parser = Parser(globals()["status"])
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--json", action="store_true", help="as JSON, for scripts")
    options = parser.parse_args(arguments)
    from sweep.drive.monitor import status

    run = options.run
    try:
        state = status.find(run)
        lines = [status.status_json(state)] if options.json else status.render(state)
    except OSError as error:
        raise ConfigError(f"{run}: {first_line(error)}") from None
    console = make_console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def report(arguments: list[str]) -> int:
    """Rebuild summary.csv, the charts and report.html of a run from its files, and print the summary.

    sweep report results/night
    sweep report s3://bucket/night --output night
    sweep report monday tuesday s3://bucket/wednesday --output week

    For several runs it writes one report into FOLDER: the conclusion over all runs, their points in one chart, and
    comparisons of the first run with every other run. With --metrics vllm it also prints what `vllm bench serve` would
    print: all points side by side, then each trial's block.
    """
    parser = Parser(report)
    parser.add_argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
    where = "for the report of several runs, or a new folder for the copy of a run in an object store"
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=where)
    parser.add_argument("--metrics", choices=("sweep", "vllm"), default="sweep", help="vllm: also print its tables")
    options = _of_all_rows(parser, arguments)
    from sweep.base.config import run_folder
    from sweep.cli.run import print_report
    from sweep.disk import object_store

    run, *others = options.runs
    if others:
        _report_several(options)
        return 0
    if object_store.is_url(run) != (options.output is not None):
        raise ConfigError(f"RUN={run}: expected a folder; for a run in an object store add --output FOLDER")
    if options.output is not None:
        object_store.copy(run, options.output)
    print_report(options.output or run_folder(run), make_console(), options.metrics, all_rows=options.all_rows)
    return 0


def _report_several(options: argparse.Namespace) -> None:
    """Write the report of several runs. Raises ConfigError for bad input, or if the report cannot be written."""
    from analysis import write_several
    from sweep.disk.stored_run import run_place

    if options.output is None:
        raise ConfigError("RUN: the report of several runs needs a new folder; add --output FOLDER")
    if options.metrics != "sweep":
        raise ConfigError(f"--metrics {options.metrics}: the tables cover only one run; give one RUN")
    places = [run_place(each) for each in options.runs]
    if len({place if isinstance(place, str) else place.resolve() for place in places}) < len(places):
        raise ConfigError(f"RUN={' '.join(options.runs)}: a run is named twice")
    runs = [_opened(each, options.all_rows) for each in options.runs]
    try:
        write_several(runs, options.output)
    except OSError as error:
        raise ConfigError(f"--output {options.output}: {first_line(error)}") from None
    print(f"report: {options.output / 'report.html'}")


def summary(arguments: list[str]) -> int:
    """Answer per task: the cheapest or fastest configuration within the SLO, how certain, its headroom and runner-up.

    sweep summary results/night
    sweep summary monday tuesday --slo ttft=200ms,tpot=20ms --format markdown --output answer.md

    RUN is a results folder, its name under results/, or s3://bucket/run. The configurations of several runs are
    compared on the tasks and machines that the runs share. Without an SLO, configurations are compared at equal loads;
    with an SLO, each at the load where it does best within the bounds.
    """
    parser = Parser(summary)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="one or more runs")
    parser.add_argument("--slo", metavar="LATENCY=LIMIT,...", help="ttft=200ms,tpot.p90=0.05s; default: the run's slo")
    parser.add_argument("--table", action="store_true", help="show all points, with the columns that decide the answer")
    parser.add_argument("--all", action="store_true", help="show all values, spreads, failures and warnings")
    options = _printed(parser, arguments)
    more = options.output or options.table or options.all
    is_screen = len(options.runs) == 1 and options.format == "text" and not more
    if is_screen and options.slo is None and not options.all_rows:
        return _print_screen(options.runs[0])
    from analysis.answers.capacity import of_capacities
    from analysis.answers.deciding import answers
    from analysis.answers.output import answers_output
    from analysis.report.models import models_table
    from analysis.report.tables import deciding_table
    from analysis.report.terminal import everything, screen_of
    from analysis.table import Line, Output
    from sweep.base.config import read_slo
    from sweep.disk.run_files import all_claim_lines

    runs = [_opened(each, options.all_rows) for each in options.runs]
    slo = read_slo(options.slo)
    answered = answers(runs, slo)
    if is_screen:
        return _print_screen(options.runs[0], screen_of(runs[0], answered))
    output = answers_output(answered)
    if options.all:
        parts = [part for each in runs for part in everything(each, answers([each], slo))]
        output = Output(parts, output.table, output.data)
    elif options.table:
        made = [(of_capacities(each), deciding_table(each, None), models_table(each)) for each in runs]
        tables = [table for each in made for table in each if table]
        output = Output(tables, output.table, output.data)
    claims = {str(each.run.place): each.searched for each in runs if each.searched}
    lines = [Line(line) for run in claims for line in all_claim_lines(claims[run], run if len(runs) > 1 else "")]
    if claims:
        output = Output([*output.parts, *lines], output.table, {**output.data, "claims": claims})
    _print(output, options)
    return 0


def _print_screen(run: str, screen: "Screen | None" = None) -> int:
    """Print the answer of one run: this screen, else the kept one, else a new one, which replaces it."""
    from analysis.answers.screen import keeping, kept_screen, report_line
    from sweep.base.config import run_folder

    folder = None if "://" in run else run_folder(run)
    if screen is None and folder and (screen := kept_screen(folder)):
        _name_others(folder.name, screen.others)
    if screen is None:
        from analysis.report.terminal import screen_of

        with keeping(folder or Path(run), is_refreshed=True) as screens:
            screen = screen_of(_opened(run, all_rows=False))
            screens.append(screen)
    console = make_console(160)
    console.print(screen.above(screen.claims, console.width))
    for line in [*screen.claims, *([report_line(folder)] if folder else [])]:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def capacity(arguments: list[str]) -> int:
    """Find the highest request rate that a running endpoint sustains within an SLO, with an interval and a stated risk.

    sweep capacity http://127.0.0.1:8000 --slo ttft=500ms,tpot.p95=50ms --input-tokens 2000

    A bound without a percentile applies to p90. load=closed searches for the most users of a closed loop instead of
    a rate. Each probe is a trial in a results folder; the same command continues where it stopped. KEY=VALUE is
    any key of sweep run. Ctrl-C prints the interval so far.
    """
    parser = Parser(capacity)
    parser.add_argument("url", metavar="URL", help="URL of a running engine")
    parser.add_argument("--slo", metavar="LATENCY=LIMIT,...", required=True, help="ttft=500ms,tpot.p90=0.05s")
    parser.add_argument("--budget", default="8m", help="measuring time, e.g. 90s, 20m or 2h (default: 8m)")
    for side in ("input", "output"):
        parser.add_argument(f"--{side}-tokens", metavar="N", help=f"mean {side} tokens: workload.{side}_tokens=N")
    parser.add_argument("--workload", metavar="FILE", help="prompts or a trace: workload=FILE")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    folders, arguments = _config_dirs(arguments)
    options = parser.parse_intermixed_args(arguments)
    keys = {"workload": options.workload, "workload.input_tokens": options.input_tokens}
    keys |= {"workload.output_tokens": options.output_tokens}
    overrides = [*(f"{key}={typed}" for key, typed in keys.items() if typed is not None), *options.overrides]
    from sweep.cli.run import run
    from sweep.cli.searches.capacity import arguments_of_run
    from sweep.disk.run_files import RunPaths

    run_arguments, out = arguments_of_run(options.url, options.slo, options.budget, overrides)
    if options.format == "json" and "dry_run=true" in options.overrides:
        raise ConfigError("--format json: expected no dry_run=true, which measures nothing")
    with contextlib.redirect_stdout(sys.stderr if options.format == "json" else sys.stdout):
        status = run(run_arguments, folders)
    if options.format == "json" and (claims := RunPaths(out).claims).is_file():
        print(claims.read_text(), end="")
    return status


def ladder(arguments: list[str]) -> int:
    """Measure how much each flag contributes that differs between two command lines of an engine.

    sweep ladder --from "vllm serve org/model" --to "vllm serve org/model --max-num-seqs 64 --enforce-eager"

    Each change is measured alone and left out, with 3 replicates, and then the pairs of changes that may interact; the
    explanation is that of sweep explain. KEY=VALUE is any key of sweep run, e.g. model=, workload=, load= or out=.
    """
    parser = Parser(ladder)
    parser.add_argument("--from", dest="first", metavar="COMMAND", required=True, help="today's command line")
    parser.add_argument("--to", dest="second", metavar="COMMAND", required=True, help="the command line to compare")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    folders, arguments = _config_dirs(arguments)
    options = parser.parse_intermixed_args(arguments)
    from sweep.cli.searches.ladder import measure_ladder

    status, out = measure_ladder(options.first, options.second, options.overrides, folders)
    if out is not None:
        explain([out])
    return status


def quick(arguments: list[str]) -> int:
    """Show in about two minutes what a running engine serves, how fast it is, and how much load it sustains.

    sweep quick                            the only server at a usual local port
    sweep quick http://127.0.0.1:8000 --slo ttft=500ms workload.input_tokens=2000

    Without --slo the bounds are 1 s to the first token and 50 ms for each further token, or more if a single request
    is slow. Each run measures again and moves older results aside. Ctrl-C prints what has been measured so far.
    """
    parser = Parser(quick)
    parser.add_argument("url_and_keys", metavar="[URL] [KEY=VALUE ...]", nargs="*", help="keys of sweep run")
    parser.add_argument("--slo", metavar="LATENCY=LIMIT,...", help="as for sweep capacity")
    folders, arguments = _config_dirs(arguments)
    options = parser.parse_intermixed_args(arguments)
    urls = [argument for argument in options.url_and_keys if "://" in argument.partition("=")[0]]
    keys = [argument for argument in options.url_and_keys if argument not in urls]
    if len(urls) > 1 or any("=" not in key for key in keys):
        typed = " ".join(options.url_and_keys)
        raise ConfigError(f"{typed}: expected one URL, such as http://127.0.0.1:8000, and KEY=VALUE")
    from sweep.cli.searches.quick import quick_report

    return quick_report(urls[0] if urls else None, options.slo, keys, folders)


def rerun(arguments: list[str]) -> int:
    """Measure a trial of a run again as its row records it, and report whether the result was reproduced.

    sweep rerun results/night#1a2b3c4d5e6f       a trial by its id, or the beginning of the id
    sweep rerun results/night --all              every result of the current plan; without --all, only a time estimate
    sweep rerun results/night#1a2b3c4d5e6f --capsule > capsule.txt
    sweep rerun capsule.txt                      anywhere, without the run; - reads it from standard input

    The row provides configuration, seeds, settings and the lockfile of the engine's environment. The trial runs without
    Ray in a separate folder; KEY=VALUE may set where and how, e.g. cluster=ray or cache_dir=DIR. Exit status:
    0 reproduced; 1 the result differs, or the trial has no result now; 2 bad input; 3 cannot tell.
    """
    parser = Parser(rerun)
    parser.add_argument("source", metavar="RUN#TRIAL", help="RUN#TRIAL, RUN, or a file with a capsule")
    parser.add_argument("--all", action="store_true", help="measure every result of RUN again")
    parser.add_argument("--capsule", action="store_true", help="print the capsule, and run nothing")
    parser.add_argument("--trust", action="store_true", help="also install and run parts that are new to this machine")
    parser.add_argument("--out", metavar="DIR", help="default: a new folder in results/rerun")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*")
    folders, remaining = _config_dirs(arguments)
    options = parser.parse_intermixed_args(remaining)
    from sweep.rerun.rows import STANDARD_INPUT, capsules_of

    content = sys.stdin.read() if options.source == STANDARD_INPUT else None
    capsules = capsules_of(options.source, content)
    if options.capsule:
        print("\n".join(each.text() for each in capsules), end="")
        return 0
    from sweep.rerun.command import run_again

    console = make_console()
    refused = len(capsules) > 1 and not options.all and content is None and not Path(options.source).is_file()
    overrides = [*options.overrides, *(["dry_run=true"] if refused else [])]
    status = run_again(capsules, overrides, options.out, arguments, console, folders, options.trust)
    if refused:
        raise ConfigError(f"{options.source}: expected RUN#TRIAL, or --all for {len(capsules):,} trials")
    return status


def studies(arguments: list[str]) -> int:
    """Judge a run by the findings of the published study that it follows; without a run, list studies and findings."""
    parser = Parser(studies)
    parser.add_argument("run", metavar="RUN", nargs="?", help=RUN_HELP)
    options = _printed(parser, arguments)
    from analysis.studies import printed

    run = options.run
    _print(printed.run_findings(_opened(run, options.all_rows)) if run else printed.catalogue(), options)
    return 0


def wandb(arguments: list[str]) -> int:
    """Send a finished run to Weights & Biases: trials, a summary, a workspace that compares engines, and a report."""
    parser = Parser(wandb)
    parser.add_argument("run", metavar="RUN", help="a results folder, or its name under results/")
    parser.add_argument("--project", help="default: the project that tracked the run, else sweep")
    parser.add_argument("--entity", help="team or user (default: the run's, else the login's)")
    parser.add_argument("--no-trials", dest="trials", action="store_false", help="skip the trials, if W&B has them")
    options = parser.parse_args(arguments)
    from analysis.tracking import publish

    return publish.main(options.run, options.project, options.entity, options.trials)


def compare(arguments: list[str]) -> int:
    """Compare runs, configuration by configuration, with the first: ratios with intervals, and a verdict for each.

    sweep compare results/monday results/tuesday
    sweep compare results/night@backend=transformers results/night@backend=vllm
    sweep compare results/night          the baseline of the run with its other configurations
    sweep compare main branch --fail-if "output_throughput < -3%" --format markdown

    RUN is a results folder, its name under results/, or s3://bucket/run; RUN@KEY=VALUE,... selects the points with
    these settings. The unit of the statistics is a launch: measure with replicates=3 or more, and
    relaunch=per_replicate. Exit status 1 means that a --fail-if condition holds: the change is larger, and its interval
    excludes "no change". Status 3 means that none holds, but some could not be judged, e.g. after a crash or with a
    single launch. --noise RUN is a run that launched one configuration repeatedly on the same machine: no interval is
    narrower than the differences between its launches. Searches for a capacity are compared by their claims, and by
    other quantities only with --metric.
    """
    percentage = _checked(Annotated[float, Field(gt=0, lt=100)], "percentages above 0 and below 100")
    parser = Parser(compare)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the first is the reference; one needs a baseline")
    parser.add_argument("--metric", action="append", metavar="COLUMN", help="default: the headline quantities")
    parser.add_argument("--margin", type=percentage, default=3, help="%% within which values count as equal (3)")
    parser.add_argument("--fail-if", action="append", default=[], metavar="CONDITION", help='"ttft_p99 > 5%%"')
    parser.add_argument("--noise", metavar="RUN", help="launches of one configuration on the same machine (A/A)")
    options = _printed(parser, arguments)
    from analysis import DamagedFile, RunNotFound
    from analysis import compare as room

    conditions = [room.condition(text) for text in options.fail_if]
    columns = list(dict.fromkeys([*(options.metric or ()), *(each.column for each in conditions)]))
    try:
        runs = options.runs if len(options.runs) > 1 else room.sides_of_one(options.runs[0])
        sides = [room.side(text, options.all_rows) for text in runs]
        for each in sides:
            _name_others(each.run.paths.out.name, each.run.others)
        noise = room.noise_of(options.noise, sides) if options.noise else None
    except (RunNotFound, DamagedFile) as error:
        raise ConfigError(str(error)) from None
    margin = options.margin / 100
    ratios = room.capacity_ratios(sides, margin)
    compared = [] if ratios and not columns else room.comparisons(sides, columns or None, margin, noise)
    output = room.comparison_output(compared, margin, conditions)
    _print(room.with_capacities(output, ratios, margin), options)
    if room.failures(conditions, compared):
        return 1
    return NOT_JUDGED if room.unjudged(conditions, compared) else 0


def explain(arguments: list[str]) -> int:
    """Print what caused the gain: the shares of a factorial's settings, or of a ladder's steps, with intervals.

    sweep explain results/decomposition
    sweep explain results/serving_ladder --format markdown

    In a factorial (settings of an engine, each off and on in several combinations) the shares are Shapley values, and
    add up to the whole gain; in a ladder they follow the order of its steps. The unit of the statistics is a launch.
    """
    parser = Parser(explain)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--metric", action="append", metavar="COLUMN", help="default: throughput, TTFT p50, cost")
    options = _printed(parser, arguments)
    from analysis.explain.decomposition import EXPLAINED, explanations
    from analysis.explain.output import explanation_output

    results = _opened(options.run, options.all_rows)
    _print(explanation_output(explanations(results.run, results.layout, options.metric or EXPLAINED)), options)
    return 0


def backends(arguments: list[str]) -> int:
    """Print which engines can run here, which are installed, and how to get the rest.

    sweep backends                  list all backends
    sweep backends NAME             list the keys of one backend, and what they mean
    sweep backends install NAME...  build their environments now instead of on first use
    sweep backends --on driver=550,capability=8.9
                                    what would be installed on a machine with such GPUs, or why not; further keys:
                                    glibc=2.31, nvcc=12.4, python=3.12
    """
    from backends import installed
    from backends.launch import host_facts

    console, cache = make_console(), cache_directory(None)
    plain = [argument for argument in arguments if argument not in ("-h", "--help")]
    match plain:
        case [] if plain != arguments:
            print(f"{Parser(backends).description}")
        case []:
            installed.show(host_facts.host(), cache, console)
            where = f"environments are in {cache / 'environments'}; to move them, set cache_dir=DIR or XDG_CACHE_HOME"
            console.print(where, markup=False, soft_wrap=True)
        case ["--on", facts]:
            installed.show_plan(installed.host_like(facts), cache, console)
        case ["install", *names] if names and plain == arguments:
            return installed.install(names, host_facts.host(), cache, console)
        case [name] if name in ConfigPath.of_user().choices("backend"):
            _print_keys(ConfigPath.of_user(), "backend", name)
        case _:
            raise one_of("backends", " ".join(plain), ["install NAME...", *installed.names()])
    return 0


def selfcheck(arguments: list[str]) -> int:
    """Check how accurate the measuring client is on this machine, using a server that logs what it actually sent.

    sweep selfcheck [+experiment=NAME] [KEY=VALUE]...   at the highest load of that plan
    sweep selfcheck --streams 256 --itl 0.02            at a load of your choice

    The server is the simulated backend, on the engine's cores; the client runs on the same cores as in a trial. Its
    measurements are compared with the server's log, request by request. Exit status 1 if the client is the bottleneck
    at this load.
    """
    parser = Parser(selfcheck)
    count, numbers = Annotated[int, Field(ge=1)], "whole numbers of at least 1"
    seconds = _checked(Annotated[float, Field(ge=0, allow_inf_nan=False)], "seconds from 0")
    processes = _checked(count | Literal["auto"], f"{numbers}, or auto")
    most = _checked(count, numbers)
    parser.add_argument("--streams", type=most, help="requests in flight at once; default: the plan's peak, else 256")
    parser.add_argument("--itl", type=seconds, default=0.02, help="seconds between a stream's tokens (default: 0.02)")
    parser.add_argument("--processes", type=processes, default="auto", help="client processes: a number, or auto")
    parser.add_argument("overrides", nargs="*", help="as for sweep run, e.g. +experiment=serving")
    folders, arguments = _config_dirs(arguments)
    options = parser.parse_intermixed_args(arguments)
    from sweep.cli import selfcheck as room

    path = ConfigPath.of_user(folders)
    streams = options.streams or (room.plan_load(options.overrides, path) if options.overrides else 256)
    finding = room.check(streams, options.itl, processes=options.processes)
    print(room.describe(finding))
    return 1 if finding.limited else 0


def gateway(arguments: list[str]) -> int:
    """Serve one URL in front of running engines: clipping, a semantic cache, and routing between engines.

    sweep gateway --to http://127.0.0.1:8000
    sweep gateway --to URL --to URL gateway.routing=prefix
    sweep gateway --to URL --tokenizer FOLDER gateway.clip.input_tokens=2048 gateway.clip.keep=both
    sweep gateway --to URL gateway=cache gateway.cache.threshold=0.9

    It listens on loopback unless --host is given; sweep run gateway=cache --help lists the keys.
    """
    parser = Parser(gateway)
    parser.add_argument("--to", metavar="URL", action="append", required=True, help="URL of an engine; may be repeated")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    port = _checked(Annotated[int, Field(ge=0, le=65535)], "0 to 65535")
    parser.add_argument("--port", type=port, default=8080, help="default: 8080")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="tokenizer of the model, to clip its input")
    parser.add_argument("--log", metavar="FILE", help="file for one line per request, without prompts")
    parser.add_argument("overrides", nargs="*", help="gateway=NAME and gateway.KEY=VALUE")
    folders, arguments = _config_dirs(arguments)
    from sweep.gateway.command import service

    service(parser.parse_intermixed_args(arguments), ConfigPath.of_user(folders)).serve_forever()
    return 0


def copy(arguments: list[str]) -> int:
    """Copy a run from an object store to a new folder."""
    parser = Parser(copy)
    parser.add_argument("url", metavar="URL", help="URL of the run: s3://bucket/run or gs://bucket/run")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    options = parser.parse_args(arguments)
    from sweep.disk import object_store

    if not object_store.is_url(options.url):
        raise ConfigError(f"URL={options.url}: expected s3://bucket/path or gs://bucket/path")
    object_store.copy(options.url, options.folder)
    return 0


def export(arguments: list[str]) -> int:
    """Write a run's trials in the format of `vllm bench serve`, for vLLM's own tools.

    sweep export results/serving_ladder FOLDER
    vllm bench sweep plot FOLDER --var-x max_concurrency --var-y median_ttft_ms

    Each point gets a folder with run=N.json per replicate, and their summary.json; metrics follow vLLM's definitions.
    """
    parser = Parser(export)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    options = _of_all_rows(parser, arguments)
    from analysis.exchange import vllm_bench

    results = _opened(options.run, options.all_rows)
    written = vllm_bench.write_results(results.run, results.layout, results.vllm_figures, options.folder)
    failed = f", {count} without a result" if (count := len(results.run.not_ok)) else ""
    print(f"{options.folder}: {len(results.run.ok)} results of {len(written)} points{failed}")
    return 0


def import_(arguments: list[str]) -> int:
    """Make a run from results saved by `vllm bench serve`, SGLang, GuideLLM, AIPerf and others (docs/comparing.md).

    sweep import result.json OUT backend=vllm model=tiny-llama workload=synthetic
    sweep import FOLDER OUT                      all results of an export, or of a `vllm bench sweep`
    sweep compare results/mine OUT

    KEY=VALUE supplies settings that the file lacks, under the keys of the run that it is compared with. Column
    `client_stamp_source` of each row, and every comparison, names the tool that measured it.
    """
    parser = Parser(import_)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a result file, or a folder of them")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new results folder")
    pairs = [each for each in arguments if "=" in each and not each.startswith("-") and not Path(each).exists()]
    options = parser.parse_args([argument for argument in arguments if argument not in pairs])
    from analysis.exchange.imported_run import import_files

    settings = dict(argument.split("=", 1) for argument in pairs)
    rows = import_files(options.files, options.out, settings)
    tools = ", ".join(sorted({row["client_stamp_source"] for row in rows}))
    print(f"{options.out}: {len(rows)} rows, measured by {tools}")
    return 0


def completion(arguments: list[str]) -> int:
    """Print a shell's completion script for `sweep`.

    bash  eval "$(sweep completion bash)"        in ~/.bashrc
    zsh   eval "$(sweep completion zsh)"         in ~/.zshrc, after compinit
    fish  sweep completion fish | source         in ~/.config/fish/config.fish
    """
    from sweep.cli.shell_completion import SCRIPTS, candidates

    if arguments[:1] == ["--words"]:  # the words of the line, starting with `sweep`
        folders, line = _config_dirs(arguments[2:])
        print("\n".join(candidates(COMMANDS, line, ConfigPath.of_user(folders))))
        return 0
    parser = Parser(completion)
    parser.add_argument("shell", choices=list(SCRIPTS))
    print(SCRIPTS[parser.parse_args(arguments).shell])
    return 0


def _typed_name(command: Callable[[list[str]], int]) -> str:
    """Return the command's name as typed, without the underscore appended to a Python keyword."""
    return command.__name__.rstrip("_")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    _typed_name(command): command
    for command in (
        *(run, reissue, capacity, quick, ladder, status, report, summary, compare, rerun, explain, studies, wandb),
        *(backends, selfcheck, gateway, copy, export, import_, completion),
    )
}
# Commands that only read a run, which may be someone else's and have any content.
READING = {"status", "report", "summary", "compare", "rerun", "explain", "studies", "wandb", "copy", "export", "import"}


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status.

    Raises ConfigError for bad input.
    """
    first, *rest = arguments or ["--help"]
    if first in COMMANDS:
        with traced(arguments, (OSError, UnicodeError)) if first in READING else contextlib.nullcontext():
            return COMMANDS[first](rest)
    if first == "help" and rest and rest[0] in COMMANDS:
        return COMMANDS[rest[0]](["--help"])
    if first in ("-h", "--help", "help"):
        lines = [f"  {name:11} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(TOP.format(commands="\n".join(lines), choices=_choices(ConfigPath.of_user())))
        return 0
    if first in ("--version", "version"):
        from sweep.base import code_version

        commit = code_version.commit()
        print(f"sweep {code_version.own_versions()['sweep']}" + (f" ({commit})" if commit else ""))
        return 0
    if "=" in first or first.startswith("--config-dir") or first in ConfigPath.of_user().choices("experiment"):
        return run(list(arguments))
    raise one_of("command", first, list(COMMANDS))


def _config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders given with --config-dir, and the remaining arguments."""
    parser = Parser(run, add_help=False)
    parser.add_argument("--config-dir", metavar="DIR", action="append", default=[])
    options, overrides = parser.parse_known_args(arguments)
    return options.config_dir, overrides


def _choices(options: ConfigPath) -> str:
    """Return the options of each config group."""
    titles = {group: f"{group}s:" for group in ("experiment", *POINT_GROUPS)}
    titles |= {group: f"{group}:" for group in RUN_GROUPS}
    return "\n".join(f"{title:12} {', '.join(options.choices(group))}" for group, title in titles.items())


def _help_of_run(overrides: Sequence[str], options: ConfigPath) -> None:
    pairs = [argument.split("=", 1) for argument in overrides if "=" in argument]
    chosen = [(group, name) for group, names in pairs if group in GROUPS for name in names.split(",")]
    if not chosen:
        print(RUN.format(arguments=ARGUMENTS_OF_RUN, choices=_choices(options)))
    for group, option in chosen or [("", PRIMARY)]:
        _print_keys(options, group, option)


def _print_keys(options: ConfigPath, group: str, option: str) -> None:
    from sweep.cli.keys import keys_of

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", max_width=30, no_wrap=True)
    table.add_column("what it means")
    for key in keys_of(options, group, option):
        table.add_row(key.name, flow(key.value), key.meaning or " | ".join(key.allowed))
    make_console(160, markup=False).print(table)


def _checked(kind: Any, allowed: str) -> Callable[[str], Any]:
    """Return a function that reads an option's text as a value of this type."""

    def read(text: str) -> Any:
        try:
            return TypeAdapter(kind).validate_strings(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"{text}: expected {allowed}") from None

    return read
