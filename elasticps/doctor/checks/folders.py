"""Can the daemon write to its folders, and are its sockets' names short enough?"""

from __future__ import annotations

import os
from pathlib import Path

from elasticps.doctor.finding import Finding, fault, ok, refused
from elasticps.doctor.service_user import ENTER, READ, WRITE, ServiceUser
from elasticps.doctor.setup import Setup, told_by
from elasticps.errors import UsageError
from elasticps.wire.address import Address

LONGEST_SOCKET = "peer-4194304-9999999999.sock"
"""As a worker's for its peers: a process, and a number of etcd's."""


async def folders(setup: Setup) -> list[Finding]:
    findings = []
    user = setup.runs_as()
    for key in ("state_dir", "log_dir", "runtime_dir"):
        path = setup.path(key)
        assert path is not None
        findings.append(_writable(key, path, user))
    runtime = setup.path("runtime_dir")
    assert runtime is not None
    try:
        Address.unix(runtime / LONGEST_SOCKET)
    except UsageError as error:
        findings.append(refused(error, f"a shorter {told_by('runtime_dir')}"))
    return findings


def _writable(key: str, path: Path, user: ServiceUser | None) -> Finding:
    place = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    if not place.is_dir():
        return fault(f"{key} {path}: {place} is no folder", fix=f"move it away, or {told_by(key)}")
    if not os.access(place, os.W_OK | os.X_OK):
        fix = f"`install -d -o elasticps {path}`, or another folder by {told_by(key)}"
        return fault(f"{key} {path}: this user may not write to {place}", fix=fix)
    if user is not None and place == path:  # what is not there yet the unit makes
        hindrance = user.hindrance(READ | WRITE | ENTER, path)
        if hindrance is not None:
            fix = f"`chown -R {user.name} {path}`, or another folder by {told_by(key)}"
            return fault(f"{key} {path} is not for the service: {hindrance}", fix=fix)
    return ok(f"{key} {path}" + ("" if place == path else f" can be made in {place}"))
