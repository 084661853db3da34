"""Does a plugin keep its contract? Found out in a process of its own, which may hang or die."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from elasticps.api.choice import parse_choice
from elasticps.api.codec_choice import NONE, parse_codec
from elasticps.api.plugins import (
    CODECS,
    DATA_POLICIES,
    OPTIMIZERS,
    PLACEMENTS,
    STRATEGIES,
    discover,
)
from elasticps.api.strategy_choice import names_parameters, parse_parts
from elasticps.api.trial import Row
from elasticps.core.blocks import Model
from elasticps.core.rehearsal import in_small
from elasticps.daemon.child import signal_name
from elasticps.daemon.output import readable
from elasticps.daemon.process import ProcessGroup

START_LIMIT_S = 120.0
"""Until the process has loaded torch and all of ours; that is no fault of the plugin."""
CASE_LIMIT_S = 30.0
CHUNK = 1 << 16


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """``passed`` are the cases that held, in order. ``reason`` is empty where all of them did,
    else it names the plugin with its distribution and entry point, the case, and what was wrong.
    """

    passed: tuple[str, ...]
    reason: str = ""


async def check_plugin(group: str, text: str, *, limit_s: float = CASE_LIMIT_S) -> Findings:
    """Run the quick cases of the plugin that ``text`` chooses; none may take over ``limit_s``.

    Raises OSError where no process can be started.
    """
    where = _where(group, parse_choice(text, "name").name)
    return await _tried(("elasticps.testing.check", group, text), where, limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What of a job a shard server would run: of a group the ``plugins``, as ``choice`` has them.

    An optimizer's ``choice`` is its model in small, in hexadecimal digits.
    """

    group: str
    plugins: tuple[str, ...]
    choice: str

    @property
    def owners(self) -> set[str]:
        """The distributions of the plugins."""
        known = discover(self.group)
        return {plugin.distribution for plugin in known if plugin.name in self.plugins}


def optimizer_trial(model: Model) -> Trial:
    digits = msgspec.msgpack.encode(in_small(model)).hex()
    return Trial(group=OPTIMIZERS, plugins=(model.optimizer,), choice=digits)


def codec_trial(codec: str) -> Trial:
    names = tuple(parse_choice(part, "codec").name for part in parse_codec(codec).parts)
    return Trial(group=CODECS, plugins=names or (NONE,), choice=codec)


def data_policy_trial(data_policy: str) -> Trial:
    name = parse_choice(data_policy, "data_policy").name
    return Trial(group=DATA_POLICIES, plugins=(name,), choice=data_policy)


def strategy_trial(strategy: str) -> Trial:
    parts = parse_parts(strategy) if names_parameters(strategy) else ()
    texts = [part.strategy for part in parts] or [strategy]
    names = tuple(dict.fromkeys(parse_choice(text, "strategy").name for text in texts))
    return Trial(group=STRATEGIES, plugins=names, choice=strategy)


def placement_trial(placement: str) -> Trial:
    name = parse_choice(placement, "placement").name
    return Trial(group=PLACEMENTS, plugins=(name,), choice=placement)


async def rehearse(trial: Trial, *, limit_s: float = CASE_LIMIT_S) -> Findings:
    """Try what a shard server would run; raises as ``check_plugin``."""
    where = " and ".join(_where(trial.group, name) for name in trial.plugins)
    module = ("elasticps.server.rehearsal", trial.group, trial.choice)
    return await _tried(module, where, limit_s)


def _where(group: str, name: str) -> str:
    return " and ".join(plugin.where for plugin in discover(group) if plugin.name == name)


async def _tried(module: tuple[str, ...], where: str, limit_s: float) -> Findings:
    group = ProcessGroup.spawn((sys.executable, "-m", *module), os.environ, None)
    drain = asyncio.create_task(_drain(group.stderr))
    try:
        return await _listen(group, where, limit_s)
    finally:
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
        group.close()


async def _drain(descriptor: int) -> None:
    """What the plugin prints goes to our standard error; unread it would hold the process up."""
    while text := await _read(descriptor):
        sys.stderr.write(text.decode(errors="replace"))


async def _read(descriptor: int) -> bytes:
    """Some bytes; none at the end."""
    await readable(descriptor)
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return await _read(descriptor)


async def _rows(group: ProcessGroup) -> AsyncGenerator[Row, None]:
    """What the process says, until its end. Raises msgspec.DecodeError for what is no row."""
    kept = b""
    while some := await _read(group.stdout):
        *lines, kept = (kept + some).split(b"\n")
        for line in lines:
            yield msgspec.json.decode(line, type=Row)


async def _listen(group: ProcessGroup, where: str, limit_s: float) -> Findings:
    begun: list[str] = []

    def failed(reason: str) -> Findings:
        at = begun[-1] if begun else "start"
        reason = reason if reason.startswith(where) else f"{where}: {at}: {reason}"
        return Findings(passed=tuple(begun[:-1]), reason=reason)

    try:
        async with asyncio.timeout(START_LIMIT_S) as limit, aclosing(_rows(group)) as rows:
            async for row in rows:
                if row.broken:
                    return failed(row.broken)
                if row.passed:
                    return Findings(passed=tuple(begun))
                begun.append(row.begins)
                limit.reschedule(asyncio.get_running_loop().time() + limit_s)
            await group.ended()
    except msgspec.DecodeError:
        return failed("it writes into what this process reads")
    except TimeoutError:
        return failed(f"did not end within {limit_s if begun else START_LIMIT_S:g} s")
    code = group.reap()
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"
    return failed(f"its process {how}")
