"""Are keys, passwords and tokens there, and readable by nobody else?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from elasticps.doctor.finding import Finding, fault, ok, refused, unchecked
from elasticps.doctor.service_user import READ, ServiceUser
from elasticps.doctor.setup import Setup
from elasticps.errors import UsageError
from elasticps.security.files import read_file, read_secret, read_word
from elasticps.security.tokens import read_tokens


async def files(setup: Setup) -> list[Finding]:
    readers: dict[str, Callable[[Path], object]] = {
        "tls.ca": lambda path: read_file(path, "tls.ca"),
        "tls.cert": lambda path: read_file(path, "tls.cert"),
        "tls.key": lambda path: read_secret(path, "tls.key"),
        "tokens": read_tokens,
        "etcd.ca": lambda path: read_file(path, "etcd.ca"),
        "etcd.cert": lambda path: read_file(path, "etcd.cert"),
        "etcd.key": lambda path: read_secret(path, "etcd.key"),
        "etcd.password_file": lambda path: read_word(path, "etcd.password_file"),
    }
    findings = []
    user = setup.runs_as()
    if user is not None and setup.settings.file is not None:
        readers = {"configuration": lambda path: path, **readers}
    for key, read in readers.items():
        path = setup.settings.file if key == "configuration" else setup.path(key)
        if path is None:
            continue
        try:
            read(path)
        except UsageError as error:
            findings.append(refused(error, f"`ls -l {path}`: it is read by the daemon's own user"))
        else:
            findings.append(_seen_by(user, key, path))
    return findings or [unchecked("no key, password or token is named")]


def _seen_by(user: ServiceUser | None, key: str, path: Path) -> Finding:
    """A file that can be read here: by the service's user, too?"""
    hindrance = user.hindrance(READ, path) if user else None
    if user is not None and hindrance is not None:
        fix = f"`chown {user.name} {path}`, or move it to where {user.name} may read"
        return fault(f"{key} {path} is not for the service: {hindrance}", fix=fix)
    return ok(f"{key} {path}, mode {path.stat().st_mode & 0o777:04o}")
