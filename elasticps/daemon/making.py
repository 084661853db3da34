"""Whether a job's strategy and codec take their options: asked of shard servers, at submit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from elasticps.api.choice import parse_choice
from elasticps.api.codec_choice import parse_codec
from elasticps.api.plugins import CODECS, STRATEGIES, discover
from elasticps.api.strategy_choice import names_parameters, parse_parts
from elasticps.core.chosen import Chosen
from elasticps.daemon.chosen import OURS
from elasticps.daemon.plugin_check import (
    Findings,
    Trial,
    codec_trial,
    data_policy_trial,
    placement_trial,
    rehearse,
    strategy_trial,
)
from elasticps.errors import PluginError
from elasticps.wire.control_messages import MakePlugins, PluginsMade

log = logging.getLogger(__name__)

LIMIT_S = 5.0
STRANGERS_LIMIT_S = 10.0
"""Less than the command line waits for an answer; most of it goes into loading torch."""


class Making:
    """Only the built-in ones, which do nothing but look at their options, are made there.

    A stranger's may hang or exit: it is made in a process of its own, one after the other.
    """

    def __init__(
        self,
        tell_servers: Callable[[MakePlugins], object],
        rehearse: Callable[[Trial], Awaitable[Findings]] = rehearse,
    ) -> None:
        self._tell_servers = tell_servers
        self._rehearse = rehearse
        self._passed: set[Trial] = set()
        self._rehearsing = asyncio.Lock()
        self._asked: dict[tuple[str, str], asyncio.Future[PluginsMade]] = {}

    async def check(self, chosen: Chosen) -> None:
        """Raise PluginError, naming the field, where an option is wrong.

        Where nobody answers in time the job is let pass: its workers will tell.
        """
        await self._check_strangers(chosen)
        if not _has_options(chosen) or not _are_ours(chosen):
            return
        key = (chosen.strategy, chosen.codec)
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
            if not self._tell_servers(MakePlugins(*key)):
                self._asked.pop(key).cancel()
                return
        try:
            async with asyncio.timeout(LIMIT_S):
                said = await asyncio.shield(answer)
        except TimeoutError:
            log.warning("the shard server has not said whether %s and %s can be made", *key)
            self._asked.pop(key, None)
            return
        if said.what:
            raise PluginError(said.what, field=said.field, limit=said.limit or None)

    async def _check_strangers(self, chosen: Chosen) -> None:
        """Make those with options that are not ours."""
        for field, text, trial_of in (
            ("strategy", chosen.strategy, strategy_trial),
            ("codec", chosen.codec, codec_trial),
            ("data_policy", chosen.data_policy, data_policy_trial),
            ("placement", chosen.placement, placement_trial),
        ):
            if ":" not in text:
                continue
            trial = trial_of(text)
            if trial.owners <= {OURS} or trial in self._passed:
                continue
            try:
                async with asyncio.timeout(STRANGERS_LIMIT_S), self._rehearsing:
                    found = await self._rehearse(trial)
            except (TimeoutError, OSError) as error:
                log.warning("whether %s can be made is not known: %s", text, error or "no answer")
                continue
            if found.reason:
                raise PluginError(found.reason, field=field)
            self._passed.add(trial)

    def answered(self, said: PluginsMade) -> None:
        answer = self._asked.pop((said.strategy, said.codec), None)
        if answer is not None and not answer.done():
            answer.set_result(said)


def _has_options(chosen: Chosen) -> bool:
    return ":" in chosen.strategy + chosen.codec or "+" in chosen.codec


def _are_ours(chosen: Chosen) -> bool:
    owners = {
        plugin.distribution
        for group, names in ((STRATEGIES, _strategies(chosen)), (CODECS, _codecs(chosen)))
        for known in (set(names),)
        for plugin in discover(group)
        if plugin.name in known
    }
    return owners <= {OURS}


def _strategies(chosen: Chosen) -> Iterator[str]:
    text = chosen.strategy
    parts = [part.strategy for part in parse_parts(text)] if names_parameters(text) else [text]
    return (parse_choice(part, "strategy").name for part in parts)


def _codecs(chosen: Chosen) -> Iterator[str]:
    return (parse_choice(part, "codec").name for part in parse_codec(chosen.codec).parts)
