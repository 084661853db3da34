"""A checkpoint while it is made: nobody takes it for one before all of it is there."""

from __future__ import annotations

import io
from pathlib import Path

from elasticps.checkpoint.directory import (
    LEFTOVER,
    NAME,
    draft_path_of,
    make_root,
    path_of,
    remove_leftovers,
)
from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.manifest import MANIFEST, FileEntry, Manifest, encoded
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.url import Url
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError


def is_draft(root: Path, name: str) -> bool:
    """Is this the name of a directory in ``root`` that a checkpoint is made in?"""
    return (NAME if isinstance(root, Url) else LEFTOVER).fullmatch(name) is not None


class Draft:
    """The directory that the checkpoint of a round is made in: ``begin``, then ``commit`` it.

    Others may put files in it meanwhile, each durable before its entry is in the manifest.
    """

    def __init__(self, root: Path, number: Round, *, disk: Disk = STORAGE) -> None:
        self.place = path_of(root, number)
        self.directory = draft_path_of(root, number)
        self._root = root
        self._disk = disk

    def begin(self) -> None:
        """Make the directory, and remove what writers that died have left. Raises OSError,
        and CheckpointError where there is such a checkpoint."""
        make_root(self._root, disk=self._disk)
        remove_leftovers(self._root, disk=self._disk)
        self._check_free()
        self._disk.make_directory(self.directory)

    def _check_free(self) -> None:
        there = self.place / MANIFEST if self.directory == self.place else self.place
        if self._disk.exists(there):
            raise CheckpointError(
                "there is one already", where=str(self.place), field="checkpoint_dir"
            )

    def check(self, entries: list[FileEntry]) -> None:
        """Raise CheckpointError where a file is not here as whoever wrote it says.

        A store is asked once for all of them: one question a block would take it long.
        """
        sizes = self._listed() if isinstance(self.directory, Url) else None
        for entry in entries:
            size = self._size(entry.name) if sizes is None else sizes.get(entry.name)
            if size is None:
                raise self._not_here(entry.name, "it is not in the list of what is")
            if size != entry.size:
                raise CheckpointError(
                    f"{entry.name} has {size} bytes",
                    where=str(self.directory),
                    field="checkpoint_dir",
                    limit=f"{entry.size} bytes, as were written",
                )

    def _listed(self) -> dict[str, int]:
        try:
            return self._disk.sizes(self.directory)
        except OSError as error:
            raise self._not_here("what is in the checkpoint", str(error.strerror)) from error

    def _size(self, name: str) -> int:
        # Opened, not listed: a network file system may show what was there a while ago.
        try:
            with self._disk.open(self.directory / name) as file:
                return file.seek(0, io.SEEK_END)
        except OSError as error:
            raise self._not_here(name, str(error.strerror)) from error

    def _not_here(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"{name} was written by its shard server, and is not here: {why}",
            where=str(self.directory),
            field="checkpoint_dir",
            limit="a directory that is the same one on every machine",
        )

    def commit(self, manifest: Manifest) -> None:
        """Make all that is in the directory a checkpoint, durably. Raises OSError, and
        CheckpointError where another has been made at that URL meanwhile."""
        disk = self._disk
        if self.directory == self.place:
            self._check_free()
        disk.create(self.directory / MANIFEST, [encoded(manifest)])
        if self.directory == self.place:
            return
        disk.sync_directory(self.directory)
        disk.rename(self.directory, self.place)
        disk.sync_directory(self._root)

    def drop(self) -> None:
        """Remove what was not committed. Idempotent.

        At a URL it stays until a newer checkpoint is there: another main worker may be at it.
        """
        if self.directory == self.place:
            return
        self._disk.remove_tree(self.directory, ignore_errors=True)
