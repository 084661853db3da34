"""What a checkpoint costs the training, how fast it is written, and whether it is ever lost.

Trains parameters with Adam on real processes, with checkpoints now and then. ``step_overhead``: by
how much longer the steps took that a checkpoint's writing overlaps than those before it, where each
computes for a while as on a GPU; ``step_overhead_without_compute``: where steps do nothing but
exchange, and have nothing for the writing to hide behind.
``write_vs_disk``: bytes a second from the cut until the checkpoint is there, against one file of as
many bytes written and fsynced on the same disk in the same run. ``resume_bit_equal``: 1 where a
job whose whole cluster was killed, with random numbers in its steps, ends when it is resumed with
the bits of one that never stopped. ``kills_at_write``: how many system calls a writer was killed
at, each of which left the old checkpoint or the new one whole; -1: no strace.
``damaged_resumes``: how many damaged checkpoints were read as if they were whole. One JSON object
on the last line. See ``python benchmarks/checkpoint.py --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
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
CALLS = ("mkdir", "openat", "write", "fsync", "close", "link", "rename", "unlinkat", "rmdir")


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
    before = raw_speed(place, int(3 * mb * 1e6))
    asked = ("--checkpoint-dir", saved, "--checkpoint-every", every, "--checkpoint-keep", 1000)
    out = train(place, "speeds", *asked, mb=mb, rounds=rounds, think_s=think_s)
    rows = [line.split() for line in out.read_text().splitlines()]
    ends = {int(row[0]): float(row[1]) for row in rows if len(row) == 2}
    raw = statistics.median([before, raw_speed(place, int(3 * mb * 1e6))])
    steps = {number: ends[number] - ends[number - 1] for number in ends if number - 1 in ends}
    overheads, written = [], []
    for number, directory in complete(saved):
        if number + 1 not in steps:  # made at the job's end: no step overlaps it
            continue
        there = (directory / MANIFEST).stat().st_mtime
        size = sum(entry.size for _, entry in read_manifest(directory).files)
        written.append(size / (there - ends[number]))
        overlapped = [k for k in steps if k > number and ends[k - 1] < there]
        clean = [
            steps[k]
            for k in steps
            if k not in overlapped and number - every + 1 < k <= number and k > 2
        ]
        if clean and overlapped:
            took = sum(steps[k] for k in overlapped)
            overheads.append(took / (len(overlapped) * statistics.median(clean)) - 1)
    return {
        "step_s": round(statistics.median(steps.values()), 3),
        "step_overhead": round(statistics.median(overheads), 3),
        "write_mb_per_s": round(statistics.median(written) / 1e6, 1),
        "disk_mb_per_s": round(raw / 1e6, 1),
        "write_vs_disk": round(statistics.median(written) / raw, 3),
    }


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
    parser.add_argument("--rounds", type=int, default=26)
    parser.add_argument("--every", type=int, default=8, help="a checkpoint every so many rounds")
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
