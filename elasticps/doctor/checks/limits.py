"""Do the kernel's limits and the file systems leave enough for a daemon and its children?"""

from __future__ import annotations

from elasticps.daemon.machine_facts import SHARED_MEMORY, UNLIMITED, MachineFacts
from elasticps.doctor.finding import Finding, fault, ok, size, warning

FEWEST_FILES = 256
"""Below that a daemon with its API, a shard server and a handful of peers runs out."""
FILES = 4096
"""A connection for each worker and server of each job, at both ends, and room."""
LOCKED = 64 << 20
SHARED = 256 << 20
"""Docker's default of 64 MiB is less than a few batches of images in flight."""
FREE, LEAST_FREE = 1 << 30, 64 << 20


def open_files(facts: MachineFacts) -> list[Finding]:
    """RLIMIT_NOFILE: a connection is a file."""
    if facts.open_files == UNLIMITED or facts.open_files >= FILES:
        many = "unlimited" if facts.open_files == UNLIMITED else str(facts.open_files)
        return [ok(f"open files: {many}")]
    saw = f"open files: {facts.open_files}"
    fix = "`ulimit -n 65536` before the daemon; under systemd LimitNOFILE=65536 in a drop-in"
    return [(fault if facts.open_files < FEWEST_FILES else warning)(saw, fix=fix)]


def locked_memory(facts: MachineFacts) -> list[Finding]:
    """RLIMIT_MEMLOCK: nothing of elasticps locks memory; libraries that speak RDMA do."""
    unlimited = facts.locked_bytes == UNLIMITED
    saw = f"locked memory: {'unlimited' if unlimited else size(facts.locked_bytes)}"
    if unlimited or facts.locked_bytes >= LOCKED:
        return [ok(saw)]
    if not facts.has_rdma:
        return [ok(f"{saw}; elasticps locks none, and there is no RDMA device")]
    fix = "for a plugin that speaks RDMA: LimitMEMLOCK=infinity, or `ulimit -l unlimited`"
    return [warning(f"{saw}, and there is an RDMA device", fix=fix)]


def shared_memory(facts: MachineFacts) -> list[Finding]:
    """elasticps speaks by sockets; a torch DataLoader with workers, by shared memory."""
    use = "for torch's DataLoader(num_workers=...) alone: elasticps itself uses none"
    if facts.shared_memory is None:
        fix = "mount -t tmpfs tmpfs /dev/shm; until then num_workers=0"
        return [warning("there is no /dev/shm", fix=f"{use}; {fix}")]
    free, total = facts.shared_memory.free, facts.shared_memory.total
    saw = f"{SHARED_MEMORY}: {size(free)} of {size(total)} free"
    if free >= SHARED:
        return [ok(saw)]
    fix = "`docker run --shm-size=1g`, or `mount -o remount,size=1g /dev/shm`"
    return [warning(saw, fix=f"{use}; {fix}")]


def disk(facts: MachineFacts) -> list[Finding]:
    """The folders of state and logs."""
    findings = []
    for key, space in facts.folders.items():
        saw = f"{key}: {size(space.free)} free"
        if space.free >= FREE:
            findings.append(ok(saw))
        else:
            made = fault if space.free < LEAST_FREE else warning
            findings.append(made(saw, fix=f"make room, or another folder in {key}"))
    return findings
