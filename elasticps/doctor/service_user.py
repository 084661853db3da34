"""The user whom systemd runs the daemon as, and what that user may do: root may do everything."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

UNIT = Path("/etc/systemd/system/elasticpsd.service")
READ, WRITE, ENTER = 4, 2, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceUser:
    name: str
    uid: int
    gids: frozenset[int]

    def may(self, wanted: int, path: Path) -> bool:
        """Whether owner, group and mode allow it; lists of access beyond them are not heeded."""
        found = path.stat()
        if self.uid == 0:
            return True
        if found.st_uid == self.uid:
            given = found.st_mode >> 6
        elif found.st_gid in self.gids:
            given = found.st_mode >> 3
        else:
            given = found.st_mode
        return given & wanted == wanted

    def hindrance(self, wanted: int, path: Path) -> str | None:
        """What keeps the user from it: the path, or the first folder above that may not be entered.

        None where nothing does. Raises OSError where it is not there.
        """
        path = path.resolve(strict=True)
        for folder in reversed(path.parents):
            if not self.may(ENTER, folder):
                return f"{self.name} may not enter {_described(folder)}"
        return None if self.may(wanted, path) else f"{self.name} may not use {_described(path)}"


def service_user(unit: Path = UNIT) -> ServiceUser | None:
    """Of the installed unit and its drop-ins. None where there is none, or this is not root."""
    drop_ins = sorted(unit.with_name(f"{unit.name}.d").glob("*.conf"))
    name = _last("User", (unit, *drop_ins))
    if os.geteuid() != 0 or not name:
        return None
    try:
        user = pwd.getpwnam(name)
        group = _last("Group", (unit, *drop_ins))
        gid = grp.getgrnam(group).gr_gid if group else user.pw_gid
    except KeyError:
        return None
    gids = frozenset(os.getgrouplist(name, gid))
    return ServiceUser(name=name, uid=user.pw_uid, gids=gids)


def _last(key: str, files: Iterable[Path]) -> str:
    """What the last file says of it, as with systemd."""
    found = ""
    for file in files:
        if not file.is_file():
            continue
        for line in file.read_text(errors="replace").splitlines():
            before, equals, value = line.partition("=")
            if equals and before.strip() == key:
                found = value.strip()
    return found


def _described(path: Path) -> str:
    """``/etc/x.pem (root:root, mode 0600)``."""
    found = path.stat()
    try:
        owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        owner, group = str(found.st_uid), str(found.st_gid)
    return f"{path} ({owner}:{group}, mode {stat.S_IMODE(found.st_mode):04o})"
