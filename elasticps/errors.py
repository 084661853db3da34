"""The one hierarchy of errors. Each says what happened, where, and what to do about it.

An error is raised where its cause is known and shown once, where the user is.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAMES = 20


def listed(names: Sequence[str]) -> str:
    """What there is, for an error's ``limit``: of many names the first few."""
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


class ElasticError(Exception):
    """Root of every error that elasticps raises on purpose.

    ``what`` is one sentence. ``where`` names the file, node, block or address it is about,
    ``field`` the offending input field, ``limit`` the bound it broke, ``hint`` the next step.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        field: str | None = None,
        limit: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.field = field
        self.limit = limit
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.field:
            text += f" (field {self.field})"
        if self.limit:
            text += f" (limit: {self.limit})"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class UsageError(ElasticError):
    """The user asked for something that cannot be: a bad flag, value or model. Exit code 2."""


class WireError(ElasticError):
    """A peer sent bytes that break the frame format. Its connection is closed, nothing else."""


class AccessDenied(ElasticError):
    """Who asks has not proven who it is, or may not do this."""


class PeerUnavailable(ElasticError):
    """A peer refused the connection, reset it, or did not answer in time."""


class MembershipChanged(ElasticError):
    """The set of workers changed in the middle of what they did together: begin that anew."""


class StoreError(ElasticError):
    """etcd answered with an error, or holds a value that is not ours."""


class StoreUnavailable(StoreError):
    """No etcd endpoint answered in time. The request may have taken effect."""


class LeaseLost(StoreError):
    """The lease ran out, here by our own clock or there by etcd's."""


class FenceLost(StoreError):
    """A fenced write was refused: another leader has been elected."""


class WatchCompacted(StoreError):
    """The watched revision was compacted away: list again and replace the state."""


class StoreRolledBack(StoreError):
    """etcd has lost what it had acknowledged, by a restored backup, say: it is used no more."""


class PluginError(UsageError):
    """A chosen plugin is missing, broken, or breaks its contract. Names what was installed."""


class CodecError(ElasticError):
    """Bytes that are no gradient coded by the job's codec. Their push alone is refused."""


class JobFailed(ElasticError):
    """The job ended without success. ``what`` carries the reason that the leader recorded."""


class TrainingOver(ElasticError):
    """A worker came when the training was over: it has nothing to do, and ends in order."""


class BlockUnavailable(ElasticError):
    """No primary of a block answered within the time allowed."""


class CheckpointError(ElasticError):
    """A checkpoint cannot be written, or what is there is damaged or is not this job's."""
