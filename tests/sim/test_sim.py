"""The simulator: it finds nothing where nothing is wrong, and everything that is taken out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.cli.main import main
from elasticps.sim import sweep as sweeps
from elasticps.sim.ablations import ABLATIONS, without
from elasticps.sim.sweep import MOST_VOID

play = partial(sweeps.play, checkpoints=Rehearsal)

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from elasticps.cli.main import main; sys.exit(main())",
    "sim",
]

CAUGHT_AT = {
    "epoch-check": (4, "replica-equality"),
    "dedup-table": (4, "one-hot"),
    "wait-for-backups": (2, "version-history"),
    "dedup-in-snapshots": (1, "audit"),
    "lease-deadline": (54, "ownership"),
    "promised-learners": (2, "writable"),
    "prepared-in-snapshots": (2, "replica-equality"),
    "generation-check": (10, "liveness"),
    "staleness-at-admission": (5, "staleness"),
    "floor-at-read": (121, "staleness"),
    "durable-reads": (6, "durable-reads"),
    "base-of-rounds-apart": (107, "replica-equality"),
    "scale-in-proofs": (1, "one-scale"),
    "scale-after-a-round": (107, "one-scale"),
    "asking-for-the-rest": (4, "liveness"),
    "return-of-reserved": (0, "samples"),
    "checkpoint-holds": (81, "checkpoint-cut"),
    "durable-copies": (65, "checkpoint-cut"),
    "directory-fsync": (1, "checkpoint-kept"),
}
"""For each part the first seed at which its absence shows, and to which checker."""


@pytest.mark.parametrize("first", [0, 100, 200])
def test_no_promise_is_broken_whatever_goes_wrong(first: int) -> None:
    broken = []
    seeds = range(first, first + 100)
    summary = sweeps.sweep(seeds, lambda each: broken.append(each.violation), Rehearsal)
    assert [violation for violation in broken if violation] == []
    assert summary.void <= summary.seeds * MOST_VOID
    assert summary.proves


@pytest.mark.parametrize("name", list(ABLATIONS))
def test_what_a_promise_rests_on_is_missed_when_it_is_taken_out(name: str) -> None:
    seed, checker = CAUGHT_AT[name]
    assert play(seed).violation == ""
    with without(name):
        assert play(seed).checker == checker
    assert play(seed).violation == ""


# -- repeating ----------------------------------------------------------------------------------


def run(*args: str, hash_seed: int = 0) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    printed = subprocess.run(
        [*COMMAND, *args], env=environment, capture_output=True, text=True, check=True
    )
    return printed.stdout


def test_a_seed_is_the_same_run_whatever_python_hashes() -> None:
    summaries = [json.loads(run("--seeds", "15", hash_seed=seed)) for seed in (1, 2)]
    for summary in summaries:
        del summary["seeds_per_minute"]
    assert summaries[0] == summaries[1]
    assert len(summaries[0]["trace_sha256"]) == 64


def test_a_replay_has_the_hash_of_the_run_that_it_replays() -> None:
    printed = run("--seed", "7", "--replay", hash_seed=3)
    row = json.loads(printed.splitlines()[-1])
    assert row["trace_sha256"] == play(7).digest
    assert f"trace {row['trace_sha256']}" in printed


def test_seeds_are_different_runs() -> None:
    assert len({play(seed).digest for seed in range(20)}) == 20


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def sim(capsys):
    """Runs ``elasticps sim``: its exit code, the last line of its stdout as JSON, and the rest."""

    def run_sim(*args: str) -> tuple[int, dict[str, object], str]:
        code = main(["sim", *args])
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        return code, json.loads(lines[-1]) if lines else {}, "\n".join(lines[:-1]) + printed.err

    return run_sim


def test_a_sweep_ends_with_its_sums(sim) -> None:
    code, summary, _ = sim("--seeds", "12", "--first", "30")
    assert code == 0
    assert (summary["seeds"], summary["violations"]) == (12, 0)
    assert summary["events"] == sum(play(seed).events for seed in range(30, 42))
    assert set(summary) == {
        "seeds",
        "violations",
        "void",
        "seeds_per_minute",
        "trace_sha256",
        "events",
    }


def test_a_violation_is_shown_with_its_seed_its_last_events_and_its_hash(sim) -> None:
    name = "dedup-table"
    seed, checker = CAUGHT_AT[name]
    with without(name):
        outcome = play(seed)
        code, summary, shown = sim("--seeds", "1", "--first", str(seed))
        again, row, _ = sim("--seed", str(seed), "--replay", "--json")
    assert (code, summary["violations"], again) == (1, 1, 1)
    assert f"seed {seed}," in shown
    assert f"broken: {checker}: " in shown
    assert f"trace {outcome.digest}" in shown
    assert 0 < len(outcome.last_events) <= 50
    assert all(event in shown for event in outcome.last_events)
    assert (row["seed"], row["trace_sha256"]) == (seed, outcome.digest)


def test_ablations_end_with_who_was_caught_where(sim) -> None:
    seed, checker = CAUGHT_AT["staleness-at-admission"]
    args = ("--ablate", "staleness-at-admission", "--first", str(seed), "--seeds", "1")
    code, result, shown = sim(*args)
    assert code == 0
    by = {"staleness-at-admission": {"seed": seed, "checker": checker}}
    assert result == {"caught": 1, "of": 1, "by": by}
    assert f"without staleness-at-admission: seed {seed}, {checker}" in shown


def test_an_ablation_that_is_not_noticed_is_a_failure(sim) -> None:
    code, result, shown = sim("--ablate", "floor-at-read", "--first", "0", "--seeds", "1")
    assert (code, result["caught"], result["of"]) == (1, 0, 1)
    assert "not noticed" in shown


def test_a_sweep_that_proves_too_little_is_a_failure(sim) -> None:
    void = next(seed for seed in range(200) if play(seed).void)
    code, summary, _ = sim("--seeds", "1", "--first", str(void))
    assert (code, summary["violations"], summary["void"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (("--replay",), "replay"),
        (("--seed", "3"), "replay"),
        (("--ablate", "nothing"), "ablate"),
        (("--seeds", "0"), "seeds"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(sim, args, field) -> None:
    code, _, shown = sim(*args)
    assert code == 2
    assert field in shown
