"""What a checkpoint costs the training, how fast it is written, and whether it is ever lost.

Trains parameters with Adam on real processes, with checkpoints now and then. ``step_overhead``: by
how much longer the steps took that a checkpoint's writing overlaps than the median of those around
them, before and after, that none does, where each computes for a while as on a GPU;
``step_overhead_without_compute``: where steps do nothing but exchange, and have nothing for the
writing to hide behind. Of all checkpoints the median is told.
``write_vs_disk``: bytes a second from the cut until the checkpoint is there, against one file of as
many bytes written and fsynced on the same disk in the same run, before the training and after it.
``extra_blocks``: the most that the shard server had of memory, while a checkpoint was made, beyond
the most that it had in the steps around, in blocks with their optimizer state.
``resume_bit_equal``: 1 where a
job whose whole cluster was killed, with random numbers in its steps, ends when it is resumed with
the bits of one that never stopped. ``kills_at_write``: how many system calls a writer was killed
at, each of which left the old checkpoint or the new one whole; -1: no strace.
``damaged_resumes``: how many damaged checkpoints were read as if they were whole. One JSON object
on the last line. See ``python benchmarks/checkpoint.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from elasticps.checkpoint.directory import complete
from elasticps.checkpoint.disk import OS_DISK
from elasticps.checkpoint.manifest import MANIFEST, read_manifest
from elasticps.checkpoint.rehearsal import Rehearsal
from elasticps.checkpoint.snapshot import read
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

HERE = Path(__file__).parent
OLD, NEW = Round(10), Round(20)
RAW_FILES = 2
"""How often the disk's speed is measured before the training, and after it."""
MEMORY_LOOK_S = 0.05
CALLS = (
    "mkdir",
    "openat",
    "write",
    "fsync",
    "close",
    "link",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
)


def command_of(
    out: Path, *options: object, mb: float, rounds: int, think_s: float, noise: bool = False
) -> list[str]:
    command = [sys.executable, "-m", "elasticps", "run", "--nodes", "1", "--replicas", "1"]
    command += [str(option) for option in options]
    command += [str(HERE / "checkpoint_train.py"), "--mb", str(mb), "--rounds", str(rounds)]
    command += ["--think-s", str(think_s), "--out", str(out)]
    return command + (["--noise"] if noise else [])


def train(place: Path, name: str, *options: object, **size: Any) -> Path:
    out = place / f"{name}.txt"
    command = command_of(out, *options, **size)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return out


def raw_speed(place: Path, nbytes: int) -> float:
    """Bytes a second of one file written in parts of 4 MiB, and fsynced."""
    part, path = os.urandom(4 << 20), place / "raw"
    begun = time.monotonic()
    with path.open("wb") as file:
        for _ in range(0, nbytes, len(part)):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    spent = time.monotonic() - begun
    path.unlink()
    return nbytes / spent


def speeds(place: Path, *, mb: float, rounds: int, every: int, think_s: float) -> dict[str, float]:
    saved = place / f"saved-{think_s:g}"
    raw = [raw_speed(place, int(3 * mb * 1e6)) for _ in range(RAW_FILES)]
    asked = ("--checkpoint-dir", saved, "--checkpoint-every", every, "--checkpoint-keep", 1000)
    with memory_seen() as memory:
        out = train(place, "speeds", *asked, mb=mb, rounds=rounds, think_s=think_s)
    rows = [line.split() for line in out.read_text().splitlines()]
    ends = {int(row[0]): float(row[1]) for row in rows if len(row) == 2}
    raw += [raw_speed(place, int(3 * mb * 1e6)) for _ in range(RAW_FILES)]
    made = [Made.found(number, directory) for number, directory in complete(saved)]
    made = [each for each in made if each.number + 1 in ends]  # one at the end overlaps no step
    written = [each.nbytes / (each.there_s - ends[each.number]) for each in made]
    disk = statistics.median(raw)
    return {
        "checkpoints": len(made),
        "step_s": round(statistics.median(steps_of(ends).values()), 3),
        "step_overhead": round(statistics.median(overheads(ends, made, every)), 3),
        "write_mb_per_s": round(statistics.median(written) / 1e6, 1),
        "disk_mb_per_s": round(disk / 1e6, 1),
        "write_vs_disk": round(statistics.median(written) / disk, 3),
        "extra_blocks": round(statistics.median(extra_blocks(ends, made, every, memory)), 1),
    }


@dataclass(frozen=True, slots=True)
class Made:
    """A checkpoint of round ``number``, which was there at ``there_s``."""

    number: int
    nbytes: int
    block_nbytes: int
    there_s: float

    @classmethod
    def found(cls, number: int, directory: Path) -> Made:
        sizes = [entry.size for _, entry in read_manifest(directory).files]
        there_s = (directory / MANIFEST).stat().st_mtime
        return cls(number, sum(sizes), max(sizes), there_s)

    def overlapped(self, ends: dict[int, float]) -> list[int]:
        """The steps that it was written in."""
        return [k for k in steps_of(ends) if k > self.number and ends[k - 1] < self.there_s]


def steps_of(ends: dict[int, float]) -> dict[int, float]:
    """What each step took; the first two load what later ones have."""
    return {k: ends[k] - ends[k - 1] for k in ends if k > 2 and k - 1 in ends}


def clean_around(number: int, ends: dict[int, float], made: list[Made], every: int) -> list[int]:
    """The steps before and after that no checkpoint overlaps."""
    taken = {k for each in made for k in each.overlapped(ends)}
    return [k for k in steps_of(ends) if abs(k - number) < every and k not in taken]


def overheads(ends: dict[int, float], made: list[Made], every: int) -> list[float]:
    steps, found = steps_of(ends), []
    for each in made:
        overlapped = each.overlapped(ends)
        clean = clean_around(each.number, ends, made, every)
        if overlapped and clean:
            took = sum(steps[k] for k in overlapped)
            usual = statistics.median(steps[k] for k in clean)
            found.append(took / (len(overlapped) * usual) - 1)
    return found


def extra_blocks(
    ends: dict[int, float], made: list[Made], every: int, memory: list[tuple[float, int]]
) -> list[float]:
    def most(steps: list[int]) -> int:
        spans = [(ends[k - 1], ends[k]) for k in steps]
        return max(
            (size for at_s, size in memory if any(a <= at_s <= b for a, b in spans)), default=0
        )

    found = []
    for each in made:
        clean = clean_around(each.number, ends, made, every)
        more = most(each.overlapped(ends)) - most(clean)
        found.append(max(0, more) / each.block_nbytes)
    return found


@contextmanager
def memory_seen() -> Iterator[list[tuple[float, int]]]:
    """When the shard servers below this process had how many bytes of their own."""
    seen: list[tuple[float, int]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(MEMORY_LOOK_S):
            seen.append((time.time(), sum(map(own_bytes, shard_servers()))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def shard_servers() -> list[int]:
    found, below = [], [os.getpid()]
    while below:
        pid = below.pop()
        with contextlib.suppress(OSError):  # it has just ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                below += map(int, (task / "children").read_text().split())
            if b"elasticps.server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def own_bytes(pid: int) -> int:
    """What of a process's memory is backed by no file."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def resumes_bit_equal(place: Path) -> int:
    """Of a run whose steps draw random numbers, killed with all its daemons and its etcd."""
    size: dict[str, Any] = {"mb": 4.0, "rounds": 14, "think_s": 0.3, "noise": True}
    straight = train(place, "straight", **size)
    asked = ("--checkpoint-dir", place / "half", "--checkpoint-every", 5)
    killed = subprocess.Popen(
        command_of(place / "half.txt", *asked, **{**size, "rounds": 1000}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not complete(place / "half") and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    resumed = train(place, "resumed", "--resume", place / "half", "--replicas", 2, **size)
    last = [out.read_text().splitlines()[-1] for out in (straight, resumed)]
    return int(last[0] == last[1])


def write_new(root: Path) -> None:
    rehearsal = Rehearsal(OS_DISK, root)
    rehearsal.write(NEW)
    rehearsal.prune(1)


def kills_at_write(place: Path) -> int:
    """Kill a writer at its first, second, ... system call that changes the disk; -1: no strace."""
    if shutil.which("strace") is None:
        return -1
    kills = 0
    for call in CALLS:
        for number in count(1):
            root = place / f"{call}-{number}"
            Rehearsal(OS_DISK, root).write(OLD)
            status = killed_at(call, number, root)
            newest = Rehearsal(OS_DISK, root).newest().round
            if newest not in (OLD, NEW):
                raise SystemExit(f"killed at {call} {number}: the newest is of round {newest}")
            shutil.rmtree(root)
            if status == 0:
                break
            kills += 1
    return kills


def killed_at(call: str, number: int, root: Path) -> int:
    """The wait status of a writer, which begins once strace is there."""
    gate, opened = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opened)
        os.read(gate, 1)
        try:
            write_new(root)
        except CheckpointError:
            os._exit(1)
        os._exit(0)
    os.close(gate)
    inject = f"inject={call}:signal=KILL:when={number}"
    tracer = subprocess.Popen(
        [
            "strace",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={call}",
            "-e",
            inject,
            "-p",
            str(child),
        ],
        stderr=subprocess.PIPE,
    )
    status_file = Path(f"/proc/{child}/status")
    while f"TracerPid:\t{tracer.pid}\n" not in status_file.read_text():
        if tracer.poll() is not None:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("strace may not attach to a process here")
        time.sleep(0.002)
    os.write(opened, b"x")
    os.close(opened)
    status = os.waitpid(child, 0)[1]
    tracer.wait()
    return status


def damaged_resumes(place: Path) -> int:
    """Of checkpoints with one byte changed, or one file cut, those that are read as whole."""
    root = place / "damaged"
    Rehearsal(OS_DISK, root).write(OLD)
    ((_, directory),) = complete(root)
    accepted = 0
    for path in sorted(directory.iterdir()):
        body = path.read_bytes()
        for at in range(0, len(body), max(1, len(body) // 40)):
            flipped = bytes([body[at] ^ 1])
            for damaged in (body[:at] + flipped + body[at + 1 :], body[:at]):
                path.write_bytes(damaged)
                accepted += is_read(directory)
        path.write_bytes(body)
    assert is_read(directory)
    return accepted


def is_read(directory: Path) -> bool:
    try:
        read(directory)
    except CheckpointError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=float, default=400, help="megabytes of parameters")
    parser.add_argument("--rounds", type=int, default=34)
    parser.add_argument("--every", type=int, default=6, help="a checkpoint every so many rounds")
    parser.add_argument(
        "--think-s", type=float, default=2.0, help="seconds a step computes, as on a GPU"
    )
    parser.add_argument("--place", help="a directory on the disk to measure")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.place) as directory:
        place = Path(directory)
        sizes = {"mb": wanted.mb, "rounds": wanted.rounds, "every": wanted.every}
        hardest = speeds(place, **sizes, think_s=0.0)
        found = {
            "parameter_mb": wanted.mb,
            "think_s": wanted.think_s,
            "kills_at_write": kills_at_write(place),
            "damaged_resumes": damaged_resumes(place),
            "resume_bit_equal": resumes_bit_equal(place),
            **speeds(place, **sizes, think_s=wanted.think_s),
            "step_overhead_without_compute": hardest["step_overhead"],
        }
    for key, item in found.items():
        print(f"{key:30} {item}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
