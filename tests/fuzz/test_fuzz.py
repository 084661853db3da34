"""What any bytes may do to the readers: the corpus each time, a short search, and the oracle."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from elasticps.wire import messages, parser
from elasticps.wire.frame import Header, unpack
from tests.fuzz import CORPUS, target_checkpoint, target_wire
from tests.fuzz.target_wire import Finding

ROOT = Path(__file__).parents[2]
RUNS = {"wire": 4_000, "checkpoint": 4_000}
TARGETS = {"wire": target_wire.one_input, "checkpoint": target_checkpoint.one_input}
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="NOT TESTED: atheris is absent (it has wheels for Python 3.11 and 3.12 on Linux)",
)


def names(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


@pytest.mark.parametrize("path", INPUTS, ids=names)
def test_every_input_that_was_kept_is_read_as_it_must(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_seeds_are_of_every_kind_that_workers_and_servers_exchange() -> None:
    kept = {path.name.rsplit("-", 2)[0] for path in INPUTS if "-re" in path.name}
    assert kept >= {"hello", "push", "pull", "init", "ledger", "snapshot", "op", "state", "status"}
    whole = [
        target_wire.fed(target_wire.repaired(path.read_bytes()[3:]), (1 << 20,), drop_odd=False)
        for path in INPUTS
        if "-re" in path.name
    ]
    assert all(len(each.frames) == 1 and each.error is None for each in whole)


@needs_atheris
@pytest.mark.timeout(400)
@pytest.mark.parametrize("target", RUNS)
def test_a_short_search_finds_nothing(target: str, tmp_path: Path) -> None:
    runs = RUNS[target]
    searched = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", target),
            *("--runs", str(runs), "--seed", "1", "--finds", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert searched.returncode == 0, searched.stdout + searched.stderr[-4000:]
    assert list(tmp_path.iterdir()) == []
    (tried,) = [line for line in searched.stderr.splitlines() if "number_of_executed_units" in line]
    assert int(tried.split()[-1]) >= runs
    assert "INFO: A corpus is not provided" not in searched.stderr


# -- the oracle finds what is broken ---------------------------------------------------------------


def corpus_passes() -> bool:
    """Whether the wire's oracle has nothing to say of the whole corpus."""
    try:
        for path in INPUTS:
            if path.parent.name == "wire":
                target_wire.one_input(path.read_bytes())
    except Exception:
        return False
    return True


def decodes_anything(meta: bytes, message_type: type[msgspec.Struct]) -> msgspec.Struct:
    return msgspec.msgpack.decode(meta, type=message_type)


def forgets_a_byte(self: parser.FrameParser, nbytes: int) -> None:
    """As if a read had been counted for less than it was, once a read is larger than one byte."""
    kept(self, nbytes - 1 if nbytes > 100 else nbytes)


def takes_any_length(view: bytes, *, max_payload: int) -> Header:
    return unpack(view)


kept = parser.FrameParser.buffer_updated
BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "an error that is not ours": lambda patch: patch.setattr(messages, "decode", decodes_anything),
    "a checksum that nobody checks": lambda patch: patch.setattr(
        parser, "verify", lambda head, meta: None
    ),
    "a byte that is read twice": lambda patch: patch.setattr(
        parser.FrameParser, "buffer_updated", forgets_a_byte
    ),
    "a limit that does not hold": lambda patch: patch.setattr(parser, "unpack", takes_any_length),
    "a payload that is another": lambda patch: patch.setattr(
        parser.FrameParser,
        "_finish",
        lambda self: (self._sink.frame(self._header, self._meta, None), self._expect_header())[0],
    ),
}


def test_of_a_sound_reader_the_oracle_says_nothing() -> None:
    assert corpus_passes()


@pytest.mark.parametrize("name", BROKEN)
def test_the_oracle_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[name](monkeypatch)
    assert not corpus_passes()


def test_a_finding_names_what_broke() -> None:
    with pytest.raises(Finding, match="read twice"):
        target_wire.require(False, "a byte was read twice")
