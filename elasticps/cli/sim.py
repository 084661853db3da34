"""The command that plays a simulated cluster from seeds, and looks for broken promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from elasticps.cli.options import json_option
from elasticps.cli.output import print_json
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.sim.sweep import Caught
    from elasticps.sim.world import Outcome

DEFAULT_SEEDS = 2000


@click.command()
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=DEFAULT_SEEDS,
    show_default=True,
    metavar="N",
    help="How many seeds to play.",
)
@click.option("--first", type=int, default=0, show_default=True, metavar="S", help="The first one.")
@click.option("--seed", type=int, metavar="S", help="The seed to replay.")
@click.option("--replay", is_flag=True, help="Play --seed alone, and print its last events.")
@click.option(
    "--ablate",
    metavar="NAME",
    help="Take out what a promise rests on, to see the checkers notice; `all`: each in turn.",
)
@json_option
@click.pass_context
def sim(
    ctx: click.Context,
    seeds: int,
    first: int,
    seed: int | None,
    replay: bool,
    ablate: str | None,
    as_json: bool,
) -> None:
    """Play a cluster in made-up time through drawn faults, and check what it promises.

    Then the same with checkpoints on a disk that loses power. Nothing runs but this process. The
    last line is one JSON object. Exit code 1: a promise was broken, too many runs proved nothing,
    or an ablation was not noticed.

    \b
    Example:
      elasticps sim --seeds 2000
      elasticps sim --seed 17 --replay
      elasticps sim --ablate all

    \b
    Exit codes:
      0    no promise was broken, and each ablation was noticed
      1    otherwise, or too many runs proved nothing
      2    no such ablation, or --replay without --seed
    """
    if replay != (seed is not None):
        raise UsageError("a replay is of one seed", field="replay", limit="--seed S --replay")
    if seed is not None:
        fine = _replay(seed, as_json=as_json)
    elif ablate is not None:
        fine = _ablate(ablate, range(first, first + seeds), as_json=as_json)
    else:
        fine = _sweep(range(first, first + seeds), as_json=as_json)
    if not fine:
        ctx.exit(1)


def _sweep(seeds: range, *, as_json: bool) -> bool:
    from elasticps.checkpoint.rehearsal import Rehearsal
    from elasticps.sim.sweep import sweep

    def tell(outcome: Outcome) -> None:
        if outcome.violation:
            _show(outcome, as_json=as_json)

    summary = sweep(seeds, tell, Rehearsal)
    print_json(summary, indent=0)
    return summary.proves


def _replay(seed: int, *, as_json: bool) -> bool:
    from elasticps.checkpoint.rehearsal import Rehearsal
    from elasticps.sim.sweep import play

    outcome = play(seed, Rehearsal)
    _show(outcome, as_json=as_json)
    return not outcome.violation


def _show(outcome: Outcome, *, as_json: bool) -> None:
    """One run: what was broken, its last events, and the hash that its replay must have."""
    if not as_json:
        for event in outcome.last_events:
            click.echo(event)
        click.echo(f"seed {outcome.seed}, faults: {', '.join(outcome.faults) or 'none'}")
        if outcome.violation:
            click.echo(f"broken: {outcome.violation}")
        click.echo(f"trace {outcome.digest}")
    row = {
        "seed": outcome.seed,
        "checker": outcome.checker,
        "violation": outcome.violation,
        "void": outcome.void,
        "faults": outcome.faults,
        "events": outcome.events,
        "trace_sha256": outcome.digest,
    }
    if as_json:
        row["last_events"] = outcome.last_events
    print_json(row, indent=0)


def _ablate(name: str, seeds: range, *, as_json: bool) -> bool:
    from elasticps.checkpoint.rehearsal import Rehearsal
    from elasticps.sim.sweep import ablate, all_parts

    parts = all_parts()
    if name != "all" and name not in parts:
        raise UsageError(
            f"no part is called {name!r}", field="ablate", limit=f"all, {', '.join(parts)}"
        )

    def tell(part: str, caught: Caught | None) -> None:
        if not as_json:
            found = f"seed {caught.seed}, {caught.checker}" if caught else "not noticed"
            click.echo(f"without {part}: {found}")

    result = ablate(parts if name == "all" else [name], seeds, tell, Rehearsal)
    print_json(result, indent=0)
    return result.caught == result.of
