"""Where each setting's value comes from: a flag, a variable, the file, or the default."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticps.daemon.config import DaemonConfig, Security
from elasticps.daemon.settings import (
    BY_KEY,
    PREFIX,
    SETTINGS,
    Setting,
    default_of,
    from_text,
    from_toml,
)
from elasticps.errors import UsageError
from elasticps.security.files import read_word

if TYPE_CHECKING:
    from elasticps.store.config import StoreConfig

FILE = Path("/etc/elasticps/elasticps.toml")
FILE_VARIABLE = "ELASTICPS_CONFIG"
MAX_FILE_BYTES = 1 << 20
DEFAULT = "default"
OTHER_VARIABLES = frozenset(
    {
        FILE_VARIABLE,
        "ELASTICPS_API",
        "ELASTICPS_CA",
        "ELASTICPS_TOKEN_FILE",
        "ELASTICPS_DEBUG",
        "ELASTICPS_AGENT",
        "ELASTICPS_WORKER",
        "ELASTICPS_FAILURE_FILE",
        "ELASTICPS_SOCKETS",
        "ELASTICPS_MACHINE",
        "ELASTICPS_TRANSPORTS",
        "ELASTICPS_CI",
    }
)
"""Variables of ours that are no settings of a daemon: another command's, or a worker's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A setting's value, and who gave it: a flag's name, a variable's, the file's path, default."""

    value: object
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The value of every setting, by key. ``file`` is None where none was read."""

    values: Mapping[str, Value]
    file: Path | None

    def config(self) -> DaemonConfig:
        """The checked configuration. Raises UsageError that names key, limit and source."""
        etcd_key = {"username": "etcd.user", "password": "etcd.password_file"}
        etcd_key["etcd"] = "etcd.endpoints"
        try:
            return self._config()
        except UsageError as error:
            keys = {setting.field_name: setting.key for setting in SETTINGS}
            keys |= {name: f"etcd.{name}" for name in ("endpoints", "ca", "cert", "key")}
            key = (keys | etcd_key).get(error.field or "", error.field or "")
            given = self.values.get(key)
            source = given.source if given and given.source != DEFAULT else None
            raise UsageError(
                error.what,
                where=error.where or source,
                field=key or None,
                limit=error.limit,
                hint=error.hint,
            ) from None

    def store(self) -> StoreConfig:
        """Where etcd is and how to prove ourselves to it. Raises UsageError."""
        from elasticps.store.config import StoreConfig  # brings gRPC, which other commands need not

        etcd: dict[str, Any] = {
            key.removeprefix("etcd."): given.value
            for key, given in self.values.items()
            if key.startswith("etcd.")
        }
        password_file = etcd.pop("password_file")
        return StoreConfig(
            username=etcd.pop("user"),
            password=read_word(password_file, "etcd.password_file") if password_file else None,
            **etcd,
        )

    def _config(self) -> DaemonConfig:
        own: dict[str, Any] = {
            BY_KEY[key].field_name: given.value
            for key, given in self.values.items()
            if not BY_KEY[key].is_part
        }
        return DaemonConfig(etcd=self.store(), security=self._security(), **own)

    def _security(self) -> Security | None:
        """All of it or nothing: half of it would be taken for the whole."""
        keys = ("tls.ca", "tls.cert", "tls.key", "tokens")
        paths = {key: path for key in keys if isinstance(path := self.values[key].value, Path)}
        if not paths:
            return None
        missing = [key for key in keys if key not in paths]
        if missing:
            raise UsageError(
                "TLS and tokens go together",
                field=missing[0],
                hint="give tls.ca, tls.cert, tls.key and tokens, or --tls-ca, --tls-cert, --tls-key"
                " and --tokens",
            )
        from elasticps.security.tls import TlsFiles  # brings OpenSSL's bindings

        return Security(
            tls=TlsFiles(ca=paths["tls.ca"], cert=paths["tls.cert"], key=paths["tls.key"]),
            tokens=paths["tokens"],
            plain_all_reduce=self.values["allow_plain_all_reduce"].value is True,
        )


def load(
    flags: Mapping[str, str | bool | tuple[str, ...] | None],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Every setting's value and source. ``flags`` are by key; None and () were not given.

    ``file`` goes before ELASTICPS_CONFIG, and that before FILE, which may be absent. An empty
    variable counts as absent. Raises UsageError for an unknown key or variable, and for a value of
    the wrong kind.
    """
    _refuse_unknown_variables(environment)
    chosen = file or (Path(given) if (given := environment.get(FILE_VARIABLE)) else None)
    path = chosen or FILE
    in_file = read_file(path) if chosen or path.exists() else None
    values = {}
    for setting in SETTINGS:
        flag = flags.get(setting.key)
        variable = environment.get(setting.variable_name)
        if flag is not None and flag != ():
            values[setting.key] = _told(setting, flag, setting.flag_name)
        elif variable:
            values[setting.key] = _told(setting, variable, setting.variable_name)
        elif in_file is not None and setting.key in in_file:
            values[setting.key] = Value(value=in_file[setting.key], source=str(path))
        else:
            values[setting.key] = Value(value=default_of(setting), source=DEFAULT)
    _take_zone_from_labels(values)
    return Settings(values=values, file=path if in_file is not None else None)


def read_file(path: Path) -> dict[str, object]:
    """The values of a TOML file by key, checked for kind. Raises UsageError.

    /dev/null is an empty one. A file that others may write to is refused: whoever changes it says
    what this machine runs.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the configuration cannot be read: {error.strerror}", where=str(path), field="config"
        ) from None
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise UsageError(
            f"everyone may write to the configuration (mode {mode & 0o777:04o})",
            where=str(path),
            field="config",
            limit="mode 0644 or less",
            hint=f"chmod o-w {path}",
        )
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(
            "the configuration is too long",
            where=str(path),
            field="config",
            limit=f"{MAX_FILE_BYTES} bytes",
        )
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"this is not TOML: {error}", where=str(path), field="config") from None
    return _checked(document, path)


def _checked(document: Mapping[str, object], path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in _flat(document):
        setting = BY_KEY.get(key)
        if setting is None:
            raise _unknown(key, BY_KEY, "setting", str(path))
        try:
            found[key] = from_toml(setting, value)
        except UsageError as error:
            raise UsageError(
                error.what, where=str(path), field=key, limit=error.limit, hint=error.hint
            ) from None
    return found


def _flat(document: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    """Keys with their section: ``[etcd] ca`` is ``etcd.ca``; a table of texts stays one value."""
    for key, value in document.items():
        if isinstance(value, dict) and key not in BY_KEY:
            yield from ((f"{key}.{name}", item) for name, item in value.items())
        else:
            yield key, value


def _told(setting: Setting, given: str | bool | tuple[str, ...], source: str) -> Value:
    if isinstance(given, bool):
        return Value(value=given, source=source)
    try:
        text = given if isinstance(given, str) else ",".join(given)
        return Value(value=from_text(setting, text), source=source)
    except UsageError as error:
        raise UsageError(
            error.what, where=source, field=setting.key, limit=error.limit, hint=error.hint
        ) from None


def _take_zone_from_labels(values: dict[str, Value]) -> None:
    labels = values["labels"].value
    if values["zone"].source == DEFAULT and isinstance(labels, dict) and "zone" in labels:
        values["zone"] = Value(value=labels["zone"], source="the label zone")


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {setting.variable_name for setting in SETTINGS} | OTHER_VARIABLES
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise _unknown(name, known, "variable", "the environment")


def _unknown(name: str, known: Iterable[str], noun: str, where: str) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:  # the right name in the wrong section, or without one
        near = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return UsageError(
        f"there is no {noun} {name[:80]!r}",
        where=where,
        field=name[:80],
        hint=f"did you mean {near[0]}?" if near else "docs/configuration.md lists them all",
    )
