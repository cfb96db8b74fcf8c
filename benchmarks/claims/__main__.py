"""The three commands; see the package's docstring."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.claims import __doc__ as about
from benchmarks.claims.document import COMMAND, PAGE, compare, measured, read_all, write
from benchmarks.claims.picture import draw_curve, draw_differences
from benchmarks.claims.regimes import BY_NAME, CONTROLS, CURVE, NEW, REGIMES, ROOT, STUDIES
from benchmarks.claims.results import RESULTS, collect
from benchmarks.claims.routes import route_reader
from benchmarks.claims.search import steps, unchosen
from benchmarks.claims.trainings import run_regime
from dsts_pipeline.base.errors import DataError


def main() -> int:
    """Run the command that was asked for; its exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.claims",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="render, pretrain, extract, train; keep the results")
    run.add_argument("--regimes", nargs="+", choices=list(BY_NAME), help="all, if not given")
    run.add_argument("--seeds", type=int, help="5; 1 of a study and of a step of the search")
    run.add_argument("--jobs", type=int, default=2, help="processes that share the trainings")
    run.add_argument("--home", type=Path, default=ROOT / "runs" / "claims")
    run.add_argument("--results", type=Path, default=RESULTS)
    run.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    run.add_argument(
        "--real", type=Path, help="folder of the real data sets (benchmarks/claims/real.py)"
    )
    run.add_argument(
        "--leave-out", nargs="*", default=[], metavar="VARIANT", help="to be trained another time"
    )
    run.add_argument(
        "--chosen",
        action="store_true",
        help="of a rate's regime: five seeds of the variants that chose it in the search",
    )
    commands.add_parser("document", help="write both pages and the README's table")
    commands.add_parser("check", help="compare both with the result files")
    chosen = parser.parse_args()
    if chosen.command == "run":
        for regime, only_chosen in steps(chosen.regimes, chosen=chosen.chosen):
            try:
                folder = run_regime(
                    regime,
                    chosen.home.resolve(),
                    num_seeds=chosen.seeds or (5 if only_chosen else regime.num_seeds),
                    jobs=chosen.jobs,
                    overrides=chosen.overrides,
                    leave_out=unchosen(regime, chosen.results) if only_chosen else chosen.leave_out,
                    real=chosen.real and chosen.real.resolve(),
                )
            except subprocess.CalledProcessError as error:  # it has said why
                return error.returncode
            except DataError as error:
                print(f"{regime.name}: {error}", file=sys.stderr)
                continue
            is_read = regime in (*REGIMES, *STUDIES)
            routes = route_reader(folder, "test") if is_read else None
            print(collect(regime, folder, chosen.results, routes))
        return 0
    if chosen.command == "document":
        write()
        if found := measured():
            draw_differences(found, RESULTS / "differences.svg", "full (N = 10)")
        if new := read_all((*NEW, *CONTROLS)):
            draw_differences(list(new.values()), RESULTS / "heads.svg", "ours")
        if curve := read_all(CURVE):
            draw_curve(list(curve.values()), RESULTS / "curve.svg")
        print(PAGE)
        return 0
    differences = compare()
    print("\n".join(differences) or "the pages and the README say what the result files say")
    if differences:
        print(f"`{COMMAND}` writes it anew", file=sys.stderr)
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
