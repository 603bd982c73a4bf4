"""The console command ``certbench``: one function for each subcommand, each a call of the package.

Mistakes end with one message on standard error and exit code 2. Nothing heavy is imported before a
subcommand needs it, so that ``certbench --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from certbench import __version__
from certbench.cluster import doctor, estimate, watch
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console command.

    Args:
        arguments: Command line without the program's name (default, that of the process).

    Returns:
        Exit code: 0, or 2 where the input is wrong (the message says what and where).
    """
    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        return command(options) or 0
    except CertbenchError as error:
        print(f"certbench: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except BrokenPipeError:  # the reader of our output (head, less) has left
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    """The command line with all subcommands."""
    top = argparse.ArgumentParser(
        prog="certbench",
        description="What is a robustness certificate worth in practice?",
        epilog="The study itself runs with: snakemake --profile profiles/local",
    )
    top.add_argument("--version", action="version", version=f"certbench {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str):
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        return made

    def configured(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--configfile",
            nargs="+",
            default=[],
            metavar="FILE",
            help="configurations laid over config/config.yaml, as for snakemake",
        )

    plan = add("plan", _plan, "Count the jobs of a configuration; run nothing.")
    configured(plan)

    report = add("report", _report, "Build the report from the results that exist; run nothing.")
    configured(report)
    report.add_argument(
        "--config-stdin",
        action="store_true",
        help="read the whole configuration as JSON from standard input",
    )
    report.add_argument(
        "--partial", action="store_true", help="build it though results are missing, and say which"
    )
    report.add_argument("--quiet", action="store_true", help="print nothing but errors")

    check = add(
        "check", _check, "Check configurations: keys, values, plug-ins, what they refer to."
    )
    check.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="each is laid over config/config.yaml by itself (default, that file alone)",
    )

    add(
        "unlock",
        _unlock,
        "Remove the lock of a Snakemake that died in this folder; refuse while one is alive.",
    ).add_argument(
        "--anyway",
        action="store_true",
        help="the folder is on a network file system, and no other machine runs Snakemake in it",
    )

    schema = add("schema", _schema, "Print the configuration reference as Markdown.")
    schema.add_argument("--write", metavar="FILE", help="write it to a file instead")

    imported = add("import-log", _import_log, "Turn a published certification log into rows.")
    imported.add_argument("log", metavar="LOG", help="tab-separated: idx, label, predict, ...")
    imported.add_argument("out", metavar="OUT.parquet", help="the file to write")
    imported.add_argument("--sigma", type=float, required=True, help="noise level of the log")
    imported.add_argument("--dataset", required=True, help="id of the dataset")
    imported.add_argument("--model", required=True, help="id of the model")

    ladder = add(
        "ladder-check",
        _ladder_check,
        "Say with which sample size and alpha the radii of a log can have been made.",
    )
    ladder.add_argument(
        "log", metavar="LOG", help="tab-separated: idx, label, predict, radius, ..."
    )
    ladder.add_argument("--sigma", type=float, required=True, help="noise level of the log")
    ladder.add_argument("--n", type=int, help="samples that the log claims (with --alpha)")
    ladder.add_argument("--alpha", type=float, help="level that the log claims (with --n)")

    for module in (estimate, doctor, watch):
        module.add_parser(commands)
    return top


def _made(options: argparse.Namespace) -> Plan:
    from certbench import config, plan

    if getattr(options, "config_stdin", False):
        try:
            given: Mapping[str, Any] = json.load(sys.stdin)
        except ValueError as error:
            raise CertbenchError(
                f"holds no JSON ({error})", where="standard input", remedy="give a configuration"
            ) from error
        return plan.make(given)
    return plan.make(config.load(options.configfile))


def _plan(options: argparse.Namespace) -> None:
    made = _made(options)
    counts = made.counts()
    width = max(map(len, counts))
    for rule, count in counts.items():
        print(f"{rule:{width}}  {count:>7,}")
    print(f"{'all':{width}}  {sum(counts.values()):>7,}")


def _report(options: argparse.Namespace) -> None:
    from certbench.report import building

    page, missing = building.build(_made(options), options.partial)
    if not options.quiet:
        print(f"{page} ({len(missing)} planned files are missing)" if missing else page)


def _check(options: argparse.Namespace) -> int:
    from certbench import config, plan

    refused = 0
    for file in options.files or [None]:
        name = file or "config/config.yaml"
        try:
            made = plan.make(config.load([file] if file else []))
        except CertbenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            refused += 1
        else:
            print(f"{name}: fine, {sum(made.counts().values()):,} jobs")
    return EXIT_REFUSED if refused else 0


def _unlock(options: argparse.Namespace) -> None:
    from certbench import locks

    print(locks.unlock(anyway=options.anyway))


def _schema(options: argparse.Namespace) -> None:
    from certbench.report import reference

    if options.write:
        from certbench.results.atomic import write_text

        write_text(options.write, reference.markdown())
    else:
        print(reference.markdown(), end="")


def _import_log(options: argparse.Namespace) -> None:
    from certbench.results import published_logs, rows

    made = published_logs.read_log(options.log, options.sigma, options.dataset, options.model)
    kind = "certificates" if "radius" in made.column_names else "predictions"
    provenance = {
        "certbench": __version__,
        "work": {"log": options.log, "sigma": options.sigma},
    }
    rows.write(options.out, made, kind, provenance)
    print(f"{options.out}: {made.num_rows:,} rows of kind {kind}")


def _ladder_check(options: argparse.Namespace) -> None:
    from certbench.results import published_logs

    made = published_logs.read_log(options.log, options.sigma, "log", "log")
    if "radius" not in made.column_names:
        raise CertbenchError(
            "holds predictions, no radii", where=options.log, remedy="give a certification log"
        )
    if (options.n is None) != (options.alpha is None):
        raise CertbenchError("is given alone", where="--n, --alpha", remedy="give both or none")
    claims = list(published_logs.CANDIDATES)
    if options.n is not None and (options.n, options.alpha) not in claims:
        claims.insert(0, (options.n, options.alpha))
    radii = made["radius"].to_numpy()
    tested = int((radii > 0).sum())
    if not tested:
        raise CertbenchError(
            "holds no certified radius", where=options.log, remedy="there is nothing to check"
        )
    found = published_logs.ladder_check(radii, options.sigma, claims)
    print("         n    alpha  radii that fit")
    for match in found:
        print(f"{match.n:>10,}  {match.alpha:>7g}  {100 * match.share:>13.2f}%")
    fitting = sum(match.share == 1 for match in found)
    if fitting != 1:
        why = "no claim fits all" if not fitting else f"too small to tell {fitting} claims apart"
        print(f"{tested:,} radii: {why}")
