"""Lines at rest: the rotated file and the buffer that followers read."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess

import pytest

from elasticps.daemon.log_files import LinesMissed, LogBuffer, LogFile
from elasticps.daemon.output import LineSplitter, Output
from tests.support.processes import open_fds, until


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk needs root, to mount a small tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "elasticps-test", place], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", place], check=True)


def add(buffer: LogBuffer, *texts: str):
    return buffer.extend(texts, time_unix=0.0, source="test", stream="stdout")


def short(items) -> list[str | LinesMissed]:
    return [item if isinstance(item, LinesMissed) else item.text for item in items]


# LogFile


def test_lines_are_appended_across_reopening(tmp_path):
    path = tmp_path / "a.log"
    for line in ("one", "zwei ü"):
        file = LogFile(path)
        file.append([line])
        file.close()
        file.close()
    assert path.read_text() == "one\nzwei ü\n"


def test_file_has_mode_0640_whatever_the_umask(tmp_path):
    file = LogFile(tmp_path / "a.log", max_bytes=4, keep=1)
    before = os.umask(0)
    try:
        file.append(["one"])
        os.umask(0o077)
        file.append(["two"])
    finally:
        os.umask(before)
    file.close()
    for name in ("a.log", "a.log.1"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_full_files_move_on_and_the_oldest_goes(tmp_path):
    file = LogFile(tmp_path / "a.log", max_bytes=10, keep=2)
    for number in range(9):
        file.append([f"n{number:03}"])
    file.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log": "n008\n",
        "a.log.1": "n006\nn007\n",
        "a.log.2": "n004\nn005\n",
    }


def test_one_append_larger_than_a_file_rotates_within(tmp_path):
    lines = [f"n{number:03}" for number in range(7)]
    file = LogFile(tmp_path / "a.log", max_bytes=10, keep=3)
    file.append(lines)
    file.close()
    names = ("a.log.3", "a.log.2", "a.log.1", "a.log")
    assert "".join((tmp_path / name).read_text() for name in names).split() == lines


def test_line_beyond_the_bound_gets_a_file_of_its_own(tmp_path):
    file = LogFile(tmp_path / "a.log", max_bytes=10, keep=3)
    file.append(["a", "b" * 50, "c"])
    file.close()
    assert (tmp_path / "a.log.1").read_text() == "b" * 50 + "\n"
    assert (tmp_path / "a.log").read_text() == "c\n"


def test_keep_none_starts_over(tmp_path):
    file = LogFile(tmp_path / "a.log", max_bytes=4, keep=0)
    file.append(["one", "two"])
    file.close()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["two\n"]


def test_rotation_goes_on_after_a_restart_of_the_daemon(tmp_path):
    path = tmp_path / "a.log"
    for line in ("n001", "n002", "n003"):
        file = LogFile(path, max_bytes=10)
        file.append([line])
        file.close()
    assert path.read_text() == "n003\n"
    assert (tmp_path / "a.log.1").read_text() == "n001\nn002\n"


def test_full_disk_drops_lines_and_tells_once_when_space_is_back(small_disk, caplog):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40 << 10))
    file = LogFile(small_disk / "a.log")
    kept = 0
    while not file.dropped:
        file.append(["x" * 1000])
        kept += 1
    kept -= 1
    file.append(["y" * 5000, "z"])
    assert file.dropped == 3

    ballast.unlink()
    file.append(["after"])
    file.append(["more"])
    file.close()
    lines = (small_disk / "a.log").read_text().splitlines()
    assert lines[:kept] == ["x" * 1000] * kept
    assert re.fullmatch(r"\S{24} daemon 3 lines were dropped: No space left .*", lines[kept])
    assert lines[kept + 1 :] == ["after", "more"]
    assert file.dropped == 3
    assert len(caplog.records) == 1


def test_missing_folder_drops_lines_until_it_is_back(tmp_path):
    folder = tmp_path / "logs"
    file = LogFile(folder / "a.log")
    file.append(["one", "two"])
    folder.mkdir()
    file.append(["three"])
    file.close()
    notice, three = (folder / "a.log").read_text().splitlines()
    assert notice.endswith("daemon 2 lines were dropped: No such file or directory")
    assert three == "three"


def test_symlink_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("")
    (tmp_path / "a.log").symlink_to(target)
    file = LogFile(tmp_path / "a.log")
    file.append(["one"])
    assert file.dropped == 1
    assert target.read_text() == ""


def test_deleted_old_files_do_not_stop_rotation(tmp_path):
    file = LogFile(tmp_path / "a.log", max_bytes=4, keep=3)
    file.append(["one", "two", "thr"])
    (tmp_path / "a.log.1").unlink()
    (tmp_path / "a.log").unlink()
    file.append(["fou"])
    file.close()
    assert (tmp_path / "a.log").read_text() == "fou\n"
    assert file.dropped == 0


# LogBuffer


async def test_sequence_numbers_count_every_line():
    buffer = LogBuffer(max_lines=3)
    lines = add(buffer, *"abcde")
    assert [line.sequence for line in lines] == [1, 2, 3, 4, 5]
    assert [line.sequence for line in add(buffer, "f")] == [6]
    assert buffer.last == 6


async def test_reader_is_told_how_many_lines_it_missed():
    buffer = LogBuffer(max_lines=3)
    add(buffer, *"abcde")
    assert short(buffer.since()) == [LinesMissed(2), "c", "d", "e"]
    assert short(buffer.since(1)) == [LinesMissed(1), "c", "d", "e"]
    assert short(buffer.since(2)) == ["c", "d", "e"]
    assert short(buffer.since(4)) == ["e"]
    assert short(buffer.since(5)) == []


async def test_position_of_an_earlier_daemon_starts_from_the_beginning():
    buffer = LogBuffer()
    add(buffer, "a", "b")
    assert short(buffer.since(1000)) == ["a", "b"]


async def test_buffer_is_bounded_in_bytes_too():
    buffer = LogBuffer(max_lines=1000, max_bytes=100)
    add(buffer, "a" * 60, "b" * 60)
    assert short(buffer.since(1)) == ["b" * 60]
    add(buffer, "c" * 500)
    assert short(buffer.since(2)) == ["c" * 500]
    add(buffer, "d")
    assert short(buffer.since(3)) == ["d"]


async def test_follower_gets_old_lines_then_new_ones_then_the_end():
    buffer = LogBuffer()
    add(buffer, "a", "b")
    seen = []

    async def follow():
        seen.extend([item.text async for item in buffer.follow(1)])

    async with asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(follow())
        await asyncio.sleep(0)
        add(buffer, "c")
        await asyncio.sleep(0)
        assert not follower.done()
        add(buffer, "d", "e")
        buffer.close()
    assert seen == ["b", "c", "d", "e"]
    assert [item.text async for item in buffer.follow(4)] == ["e"]


async def test_slow_follower_misses_lines_and_is_told():
    buffer = LogBuffer(max_lines=2)
    add(buffer, "a")
    follower = buffer.follow()
    first = await anext(follower)
    add(buffer, *"bcdef")
    buffer.close()
    rest = [item async for item in follower]
    assert short([first, *rest]) == ["a", LinesMissed(3), "e", "f"]


async def test_cancelled_follower_leaves_nothing_behind():
    buffer = LogBuffer()

    async def follow():
        async for _ in buffer.follow():
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    add(buffer, "a")
    assert asyncio.all_tasks() == {asyncio.current_task()}


# LineSplitter


def split(*chunks: bytes, max_bytes: int = 8) -> list[str]:
    splitter = LineSplitter(max_bytes)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.end()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((), []),
        ((b"\n",), [""]),
        ((b"a\nb\n",), ["a", "b"]),
        ((b"a", b"b\nc", b"\n", b"d"), ["ab", "c", "d"]),
        ((b"a\r\nb\r", b"\n"), ["a", "b"]),
        ((b"12345678\n",), ["12345678"]),
        ((b"123456789\n",), ["12345678", "9"]),
        ((b"1234567890123456789",), ["12345678", "90123456", "789"]),
        ((b"1234567\xc3\xbc\n",), ["1234567", "ü"]),
        ((b"123456\xf0\x9f\x98\x80x",), ["123456", "😀x"]),
        ((b"\x80" * 9 + b"\n",), ["\ufffd" * 5, "\ufffd" * 4]),
        ((b"a\xffb\x00\n",), ["a\ufffdb\x00"]),
    ],
)
def test_bytes_become_bounded_lines(chunks, lines):
    assert split(*chunks) == lines
    assert split(*(bytes([byte]) for chunk in chunks for byte in chunk)) == lines


# Output


async def test_disk_that_hangs_costs_lines_in_the_file_but_not_in_the_buffer(tmp_path):
    path = tmp_path / "a.log"
    os.mkfifo(path)  # opening it blocks until somebody reads
    buffer, file = LogBuffer(), LogFile(path)
    before = open_fds()
    output = Output("test", buffer, file, stall_s=0.05)
    for text in ("one", "two", "three"):
        await output.write([text], "stdout")
    await output.aclose()
    assert short(buffer.since()) == ["one", "two", "three"]

    reader = os.open(path, os.O_RDONLY)
    await until(lambda: file.dropped == 2)
    with os.fdopen(reader) as lines:
        assert lines.readline().endswith(" stdout one\n")
        assert lines.read() == ""
    assert open_fds() <= before


async def test_disk_that_is_back_is_told_what_was_lost(tmp_path):
    path = tmp_path / "a.log"
    os.mkfifo(path)
    output = Output("test", LogBuffer(), LogFile(path), stall_s=0.05)
    for text in ("one", "two"):
        await output.write([text], "stdout")
    with os.fdopen(os.open(path, os.O_RDONLY)) as lines:
        assert lines.readline().endswith(" stdout one\n")
        await until(lambda: output._stalled.done())
        await output.write(["three"], "stderr")
        await output.aclose()
        notice, three = lines.read().splitlines()
    assert notice.endswith("daemon 1 lines were dropped: the disk did not answer within 0.05 s")
    assert three.endswith(" stderr three")


async def test_line_in_the_file_has_time_and_stream(tmp_path):
    output = Output("test", LogBuffer(), LogFile(tmp_path / "a.log"))
    await output.write(["hello"], "stderr")
    await output.aclose()
    time_text, stream, text = (tmp_path / "a.log").read_text().split()
    assert (stream, text) == ("stderr", "hello")
    assert time_text.endswith("Z")
    assert len(time_text) == len("2025-01-31T12:00:00.123Z")
