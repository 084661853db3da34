"""A real systemd for tests: PID 1 of namespaces of its own, over an overlay of this machine's root.

Nothing outside is touched: what it writes goes to memory, its cgroups are below one of ours, and
killing its process ends all of it. The network is this machine's own, for an etcd on loopback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

TREE = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = "/opt/elasticps/bin/python"
BOOT_S = 120.0
COMMAND_S = 120.0
LOOK_S = 0.1

NEW_NAMESPACES = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--kill-child")
ITS_NAMESPACES = ("-m", "-p", "-u", "-i", "-C", "-r", "-w")
NOT_WANTED = (
    "systemd-sysctl",
    "systemd-modules-load",
    "systemd-binfmt",
    "systemd-udevd",
    "systemd-udev-trigger",
    "systemd-tmpfiles-setup-dev",
)
"""Units that would change the kernel that this machine shares."""
ENTER_CGROUP = 'echo $$ > "$CGROUP/cgroup.procs" && exec "$@"'
# pivot_root, for within a chroot the kernel makes no user namespaces, as PrivateUsers= asks.
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount -t sysfs sysfs "$ROOT/sys"
mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/var/tmp"
mount --rbind /dev "$ROOT/dev"
cd "$ROOT"
pivot_root . mnt
exec env -i container=other "$(command -v chroot)" . /bin/sh -c '
    umount -l /mnt
    exec /lib/systemd/systemd --system --unit=basic.target --log-target=journal'
"""


class CannotBoot(Exception):
    """This machine refuses what it takes; says what."""


class Booted:
    """``with booted(directory) as machine``: elasticps is at /opt/elasticps, not installed yet."""

    def __init__(self, root: Path, console: Path, pid: int) -> None:
        self.root = root
        self.console = console
        self._pid = pid

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command that runs inside, as root, says on stdout and stderr."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._pid), *ITS_NAMESPACES, *argv],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout.strip()

    def elasticps(self, *argv: str, check: bool = True) -> str:
        return self.run(PYTHON, "-P", "-m", "elasticps", *argv, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit)

    def until(self, unit: str, name: str, *values: str) -> str:
        """Wait until the property of the unit is one of ``values``."""
        deadline = time.monotonic() + BOOT_S
        while (found := self.show(unit, name)) not in values:
            if time.monotonic() > deadline:
                log = self.run("journalctl", "-u", unit, "--no-pager", "-n", "50", check=False)
                raise AssertionError(f"{unit}: {name} stays {found}, not {values}\n{log}")
            time.sleep(LOOK_S)
        return found


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Booted]:
    """Raises CannotBoot where this machine cannot: not root, no systemd, mounts refused."""
    _check_machine()
    with ExitStack() as stack:
        root = _overlay(directory, stack)
        _put_elasticps(root)
        cgroup = _cgroup(stack)
        console = directory / "console"
        output = stack.enter_context(console.open("wb"))
        process = subprocess.Popen(
            ["sh", "-c", ENTER_CGROUP, "sh", "unshare", *NEW_NAMESPACES, "sh", "-c", BOOT],
            env={**os.environ, "ROOT": str(root), "CGROUP": str(cgroup)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        stack.callback(_end, process)
        machine = Booted(root, console, _init_of(process, console))
        _wait_for_boot(machine, process)
        yield machine


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise CannotBoot("this is root's to do")
    for command in ("unshare", "nsenter", "mount", "systemctl", "dbus-daemon"):
        if shutil.which(command) is None:
            raise CannotBoot(f"{command} is absent")
    if not SYSTEMD.exists():
        raise CannotBoot(f"{SYSTEMD} is absent")


def _overlay(directory: Path, stack: ExitStack) -> Path:
    memory, root = directory / "memory", directory / "root"
    for folder in (memory, root):
        folder.mkdir()
    _mount(stack, memory, "-t", "tmpfs", "-o", "mode=755", "tmpfs")
    for name in ("upper", "work"):
        (memory / name).mkdir()
    layers = f"lowerdir=/,upperdir={memory / 'upper'},workdir={memory / 'work'}"
    _mount(stack, root, "-t", "overlay", "-o", layers, "overlay")
    _mount(stack, root / "run", "-t", "tmpfs", "-o", "mode=755", "tmpfs")
    # Its own, or it would wait for this machine's disks.
    (root / "etc/fstab").unlink(missing_ok=True)
    for name in NOT_WANTED:
        mask = root / "etc/systemd/system" / f"{name}.service"
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    return root


def _mount(stack: ExitStack, place: Path, *options: str) -> None:
    done = subprocess.run(
        ["mount", *options, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotBoot(f"mount {place.name}: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "--recursive", "--lazy", str(place)], check=True)


def _put_elasticps(root: Path) -> None:
    """A Python at /opt/elasticps that runs this tree with what is installed for the tests.

    Copies, for the units see no /tmp but their own, and nothing that is closed to others.
    """
    home = root / "opt/elasticps"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=COMMAND_S
    )
    tree = home / "tree"
    shutil.copytree(TREE / "elasticps", tree / "elasticps", ignore=shutil.ignore_patterns("*.pyc"))
    for folder in Path(sys.base_prefix).parents:  # in the overlay alone
        inside = root / folder.relative_to("/")
        inside.chmod(inside.stat().st_mode | 0o011)
    (packages,) = home.glob("lib/python*/site-packages")
    lines = [tree.relative_to(root)]
    for number, place in enumerate(site.getsitepackages()):
        link = home / f"packages{number}"
        link.mkdir()
        subprocess.run(["mount", "--bind", place, str(link)], check=True)
        lines.append(link.relative_to(root))
    (packages / "elasticps-tests.pth").write_text("".join(f"/{line}\n" for line in lines))


def _cgroup(stack: ExitStack) -> Path:
    """A cgroup of the unified hierarchy for it, removed with all that it made below."""
    rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    places = [Path(row[1]) for row in rows if row[2] == "cgroup2"]
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].splitlines()
    if not places or not own:
        raise CannotBoot("there is no cgroup v2 hierarchy")
    cgroup = places[0] / own[0] / f"elasticps-boot-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        raise CannotBoot(f"no cgroup can be made: {error.strerror}") from error
    stack.callback(_remove_cgroup, cgroup)
    return cgroup


def _remove_cgroup(cgroup: Path) -> None:
    deadline = time.monotonic() + BOOT_S
    for path, _, _ in os.walk(cgroup, topdown=False):
        while Path(path).exists():
            try:
                Path(path).rmdir()
            except OSError:  # its processes are dying
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The kernel ends a PID namespace with its first process, which dies with ``unshare``."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def _init_of(process: subprocess.Popen[bytes], console: Path) -> int:
    """The process id, here, of what is PID 1 in there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline and process.poll() is None:
        found = children.read_text().split()
        if found:
            return int(found[0])
        time.sleep(LOOK_S)
    raise CannotBoot(f"no namespaces: {console.read_text(errors='replace')[-500:]}")


def _wait_for_boot(machine: Booted, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_S
    state = ""
    while time.monotonic() < deadline and process.poll() is None:
        state = machine.run("systemctl", "is-system-running", check=False)
        if state in ("running", "degraded"):
            return
        time.sleep(LOOK_S)
    said = machine.console.read_text(errors="replace")[-2000:]
    raise CannotBoot(f"systemd did not come up ({state}): {said}")
