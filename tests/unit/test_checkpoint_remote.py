"""Checkpoints at a URL: whole or not there, whatever fails; and URLs that are refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

import fsspec
import pytest
from safetensors.torch import load_file

from elasticps.checkpoint import remote, remote_ownership
from elasticps.checkpoint.directory import complete, path_of, prune
from elasticps.checkpoint.draft import Draft, is_draft
from elasticps.checkpoint.export import export
from elasticps.checkpoint.listing import list_checkpoints
from elasticps.checkpoint.manifest import FileEntry, read_manifest
from elasticps.checkpoint.ownership import Owner
from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.checkpoint.remote_ownership import RemoteOwnership, ownership_of
from elasticps.checkpoint.snapshot import read, read_newest, write
from elasticps.checkpoint.storage import REMOTE, STORAGE
from elasticps.checkpoint.url import Url, check_installed, place_of
from elasticps.checkpoint.weights_file import import_weights
from elasticps.core.consistency import Guarantees, check_guarantees
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError, UsageError
from tests.support.checkpoints import VERSION, assert_same, snapshot, write_round

_numbers = count()


@pytest.fixture
def root() -> Iterator[Path]:
    place = place_of(f"memory://jobs-{next(_numbers)}/saved")
    yield place
    REMOTE.remove_tree(place, ignore_errors=True)


def damage(path: Path) -> None:
    with STORAGE.open(path) as file:
        body = file.read()
    STORAGE.create(path, [body[:-1] + bytes([body[-1] ^ 1])])


def test_a_url_is_one_whatever_is_joined_to_it() -> None:
    root = place_of("s3://bucket/jobs/")
    assert str(root / "round-1" / "x") == "s3://bucket/jobs/round-1/x"
    assert str((root / "x").parent) == "s3://bucket/jobs"
    assert str(root.with_name("y")) == "s3://bucket/y"
    assert root.parent == place_of("s3://bucket")
    assert place_of("file:///a/b") == place_of("/a/b") == Path("/a/b")
    with pytest.raises(TypeError, match="not on this machine"):
        root.exists()


def test_what_is_written_at_a_url_is_read_back_listed_and_exported(
    root: Path, tmp_path: Path
) -> None:
    assert isinstance(root, Url)
    place = write_round(root, 7)
    assert_same(read(place), snapshot(7))
    (listed,) = list_checkpoints(root, verify=True)
    assert (listed.path, listed.round, listed.problem) == (str(place), 7, "")
    assert export(place, tmp_path / "out.safetensors").round == 7
    assert load_file(tmp_path / "out.safetensors").keys() == snapshot(7).values.keys()
    imported = import_weights(tmp_path / "out.safetensors", root / "start", version=VERSION)
    assert imported.path == f"{root}/start/round-00000000"
    assert read(place_of(imported.path)).values.keys() == snapshot(7).values.keys()


@pytest.mark.parametrize("arrives", [False, True], ids=["not there", "there, and not told"])
def test_a_write_that_fails_anywhere_leaves_the_old_one_or_the_new_one_whole(
    arrives: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = REMOTE.write
    rounds, told = set(), list[str]()
    for failing in count():
        saved = Rehearsal(STORAGE, root / str(failing))
        saved.write(Round(10))
        writes = count()

        def broken(path: Path, parts: list[bytes], writes: Iterator[int] = writes) -> None:
            fails = next(writes) == failing  # noqa: B023
            if arrives or not fails:
                real(path, parts)
            if fails:
                raise OSError(5, "the connection was lost")

        with monkeypatch.context() as patch:
            patch.setattr(REMOTE, "write", broken)
            try:
                saved.write(Round(20))
                saved.prune(1)
            except CheckpointError as error:
                told.append(str(error))
            else:
                break
        rounds.add(saved.newest().round)
        saved.write(Round(30))
        saved.prune(1)
        assert [path.name for path in REMOTE.entries(saved.root)] == ["round-00000030"]
    assert failing == 3  # two blocks and the manifest: what did not change is copied
    assert all("the connection was lost" in error for error in told)
    assert rounds == ({10, 20} if arrives else {10})


def test_the_newest_is_kept_and_what_is_under_way_is_left_alone(root: Path) -> None:
    for number in (10, 20, 30):
        write_round(root, number)
    unfinished = [Draft(root, Round(number)) for number in (5, 40)]
    for draft in unfinished:
        draft.begin()
        STORAGE.write(draft.directory / "block", [b"1", b"2"])
        draft.drop()
    assert is_draft(root, unfinished[0].directory.name)
    prune(root, 2)
    names = sorted(path.name for path in REMOTE.entries(root))
    assert names == ["round-00000020", "round-00000030", "round-00000040"]
    assert [number for number, _ in complete(root)] == [30, 20]
    prune(root, 1, made=Round(20))  # a later one is another job's
    assert [number for number, _ in complete(root)] == [30, 20]


def test_of_two_that_make_the_same_round_one_gets_it(root: Path) -> None:
    drafts = [Draft(root, Round(10)) for _ in range(2)]
    for draft in drafts:
        draft.begin()
    manifest = read_manifest(write_round(root, 9))
    drafts[0].commit(manifest)
    with pytest.raises(CheckpointError, match="there is one already"):
        drafts[1].commit(manifest)


def test_a_store_is_asked_once_whether_all_blocks_are_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Draft(root, Round(10))
    draft.begin()
    entries = [FileEntry(name=f"block-{number}", size=2, xxh128="") for number in range(20)]
    for entry in entries:
        STORAGE.write(draft.directory / entry.name, [b"ab"])
    asked: list[Path] = []
    real = REMOTE.sizes
    monkeypatch.setattr(REMOTE, "sizes", lambda path: asked.append(path) or real(path))
    monkeypatch.setattr(REMOTE, "open", lambda path: asked.append(path))
    draft.check(entries)
    assert asked == [draft.directory]
    longer = FileEntry(name="block-0", size=3, xxh128="")
    with pytest.raises(CheckpointError, match="block-0 has 2 bytes"):
        draft.check([longer])
    with pytest.raises(CheckpointError, match="block-99 was written by its shard server, and is"):
        draft.check([*entries, FileEntry(name="block-99", size=2, xxh128="")])


def test_a_damaged_newest_one_is_passed_over_and_set_aside(root: Path) -> None:
    write_round(root, 10)
    newest = write_round(root, 20)
    damage(newest / "values.safetensors")
    found = read_newest(root)
    assert (found.snapshot.round, [path for path, _ in found.damaged]) == (10, [newest])
    ownership = ownership_of(root, Owner("1d", "job"))
    assert isinstance(ownership, RemoteOwnership)
    ownership.begin(Round(10), [newest])
    assert [number for number, _ in complete(root)] == [10]
    assert REMOTE.exists(newest.with_name(f"damaged-{newest.name}"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes some hundredths of one."""
    for name, seconds in (("BEAT", 0.02), ("WATCH", 0.2), ("LOOK", 0.01), ("SETTLE", 0.05)):
        monkeypatch.setattr(remote_ownership, f"{name}_S", seconds)


def claims(root: Path, *names: str) -> list[RemoteOwnership]:
    return [RemoteOwnership(root, Owner(name, f"job-{name}")) for name in names]


def test_a_living_jobs_place_is_refused_to_who_comes_later(root: Path) -> None:
    first, last = claims(root, "first", "last")
    with closing(first), closing(last):
        first.begin(Round(0))
        with pytest.raises(CheckpointError, match="job job-first has its checkpoints here") as told:
            last.begin(Round(0))
        assert told.value.limit == "one job at a time"
        first.check()


@pytest.mark.parametrize("dead", ["not held", "held"])
def test_an_ended_or_killed_jobs_place_is_the_next_ones(
    root: Path, dead: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = claims(root, "first", "last")
    first.begin(Round(0))
    first.close()
    if dead == "held":
        first._write(held=True)  # a killed one has let go of nothing
    last.begin(Round(0))
    with closing(last):
        watched = f"{root} is job job-first's: looking for"
        assert (watched in caplog.text) == (dead == "held")
        assert f"{root} was job job-first's: that job gets no more checkpoints" in caplog.text
        last.check()
        with pytest.raises(CheckpointError, match="job job-last has its checkpoints here"):
            first.check()
        other = RemoteOwnership(root, Owner("of another cluster", "job-last"))
        with pytest.raises(CheckpointError, match="another job named job-last has its"):
            other.check()


def test_of_two_that_begin_at_once_one_is_refused(root: Path) -> None:
    for number in range(10):
        place = root / str(number)
        both, together = claims(place, "one", "other"), threading.Barrier(2)

        def begin(each: RemoteOwnership, together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                each.begin(Round(0))
            except CheckpointError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            began = list(pool.map(begin, both))
        assert sorted(began) == [False, True]
        both[began.index(True)].check()
        for each in both:
            each.close()


def test_a_job_keeps_its_place_when_its_main_worker_changes(root: Path) -> None:
    first, second = claims(root, "a", "a")
    (other,) = claims(root, "b")
    first.begin(Round(0))
    first.close()
    second.check()
    with closing(second), pytest.raises(CheckpointError, match="job job-a has"):
        other.begin(Round(0))
    write_round(root, 10)
    with pytest.raises(CheckpointError, match="there is a checkpoint of round 10 here"):
        other.begin(Round(5))


def test_an_error_of_any_library_is_told_with_the_url(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentials(Exception):
        pass

    def refused(*_: object) -> None:
        raise NoCredentials("unable to locate credentials")

    monkeypatch.setattr(remote, "_at", refused)
    with pytest.raises(CheckpointError, match="NoCredentials: unable to locate credentials"):
        write(root, snapshot(1), version=VERSION)
    with pytest.raises(CheckpointError, match="unable to locate credentials"):
        read_newest(root)


def test_two_reads_of_a_round_see_what_another_machine_wrote_between(root: Path) -> None:
    write_round(root, 10)
    assert len(complete(root)) == 1
    fs, inner = fsspec.core.url_to_fs(str(root))
    fs.pipe_file(f"{inner}/round-00000020/manifest.json", b"{}")
    assert [number for number, _ in complete(root)] == [20, 10]
    assert path_of(root, Round(20)) == root / "round-00000020"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://key:secret@bucket/x", "password"),
        ("s3://bucket/x?token=secret", "password or options"),
        ("s3://bucket/../secret", r"\.\."),
        ("simplecache::s3://bucket", "checkpoint_dir of"),
        ("file://relative", "checkpoint_dir of"),
        ("s3://", "checkpoint_dir of"),
    ],
)
def test_a_url_that_will_not_do_is_refused_and_a_password_not_shown(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        check_guarantees(Guarantees(checkpoint_dir=url), 1)
    assert caught.value.field == "checkpoint_dir"
    assert "password" not in says or "secret" not in str(caught.value)


def test_a_url_is_a_place_for_checkpoints() -> None:
    urls = ["s3://bucket/a", "file:///a", "sftp://me@host/a"]
    for url in urls:
        check_guarantees(Guarantees(checkpoint_dir=url, checkpoint_every=1, resume=url), 1)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://x", "another place in each process"),
        ("nowhere://x", "no file system is known as nowhere://"),
        ("gs://x", "gcsfs"),
    ],
)
def test_a_protocol_that_is_not_installed_is_refused_at_once(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=says) as caught:
        check_installed(url, "resume")
    assert caught.value.field == "resume"


def test_fsspec_itself_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.registry", None)
    check_installed("/a/path", "resume")
    with pytest.raises(UsageError) as caught:
        check_installed("s3://bucket", "resume")
    assert "elasticps[remote]" in str(caught.value.hint)
