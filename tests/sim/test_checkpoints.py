"""Checkpoints on a disk that loses power: all is there that was promised, by all that is synced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest

from elasticps.checkpoint.disk import OS_DISK
from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.core.ids import Round
from elasticps.sim.checkpoints import PowerCuts
from elasticps.sim.disk import Disk

Patch = pytest.MonkeyPatch
SEEDS = range(300)


def broken() -> list[str]:
    outcomes = [PowerCuts(seed, Rehearsal).run() for seed in SEEDS]
    return [outcome.checker for outcome in outcomes if outcome.violation]


def test_no_power_cut_costs_what_was_acknowledged() -> None:
    assert broken() == []


def test_power_cuts_come_at_every_kind_of_step() -> None:
    before = set()
    for seed in SEEDS:
        cuts = PowerCuts(seed, Rehearsal)
        cuts.run()
        for step, line in enumerate(cuts.disk.trace):
            if "power cut" in line and step:
                before.add(cuts.disk.trace[step - 1].split()[1])
    assert before >= {"make", "create", "write", "sync", "link", "rename", "remove", "acknowledged"}


def unsynced(which: Callable[[Path], bool]) -> Callable[[Patch], None]:
    real = Disk.sync_directory

    def put(patch: Patch) -> None:
        patch.setattr(Disk, "sync_directory", lambda self, path: which(path) or real(self, path))

    return put


def unsynced_files(patch: Patch) -> None:
    patch.setattr(Disk, "sync_file", lambda self, path: None)


def pruned_too_far(patch: Patch) -> None:
    real = Rehearsal.prune
    patch.setattr(Rehearsal, "prune", lambda self, keep: real(self, max(1, keep - 1)))


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(unsynced(lambda path: path == Path("/")), id="top"),
        pytest.param(unsynced(lambda path: path.name == "jobs"), id="above"),
        pytest.param(unsynced(lambda path: path.name == "checkpoints"), id="root"),
        pytest.param(unsynced(lambda path: path.name.endswith(".tmp")), id="temporary"),
        pytest.param(unsynced_files, id="files"),
        pytest.param(pruned_too_far, id="prune"),
    ],
)
def test_what_a_checkpoint_rests_on_is_missed_where_it_is_left_out(
    put: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    put(monkeypatch)
    assert "checkpoint-kept" in broken()


def test_a_checkpoint_is_the_same_on_the_simulated_disk_as_on_a_real_one(tmp_path: Path) -> None:
    simulated = Disk(Random(0))
    made = []
    for rehearsal in (Rehearsal(OS_DISK, tmp_path / "a"), Rehearsal(simulated, Path("/a"))):
        for number in (3, 5, 8):
            rehearsal.write(Round(number))
        rehearsal.prune(2)
        contents = [rehearsal.content(number) for number in rehearsal.complete()]
        assert rehearsal.newest() == contents[0]
        made.append(
            [msgspec.structs.replace(each, created_unix=0.0, digest="") for each in contents]
        )
    assert made[0] == made[1]
    assert [manifest.round for manifest in made[0]] == [8, 5]
    assert len(simulated.entries(Path("/a"))) == len(list((tmp_path / "a").iterdir())) == 2
