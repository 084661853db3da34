"""The end of a certificate is told in time, and after it what mends it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from elasticps.cli.client import Api
from elasticps.daemon import certificate_watch
from elasticps.daemon.certificate_watch import DAY_S, end_told, warn_of_end
from elasticps.errors import PeerUnavailable
from elasticps.security import authority
from elasticps.security.authority import Issued, issue, make_authority
from elasticps.security.tls import NodeTls, TlsFiles
from elasticps.testing.waiting import eventually


@pytest.mark.parametrize(
    ("left_days", "told"),
    [(14.5, ""), (13.5, "ends in 13 days"), (0.5, "ends in 0 days"), (-1.0, "has ended at")],
)
def test_the_end_is_told_two_weeks_before_it(left_days: float, told: str) -> None:
    said = end_told(Path("a.pem"), 1e9 + left_days * DAY_S, 1e9)
    assert told in said
    assert bool(said) == bool(told)
    assert not said or "elasticps certs issue" in said


def issued(directory: Path, *, days: int) -> Issued:
    make_authority(directory, "lab", days=3650)
    return issue(directory, "a", ["127.0.0.1"], days=days)


async def test_a_daemon_that_runs_says_each_day_that_its_certificate_ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate_watch, "DAY_S", 0.001)
    watching = asyncio.create_task(warn_of_end(issued(tmp_path / "c", days=13).cert))
    await eventually(lambda: caplog.text.count("then no other node talks to this one") >= 2)
    (tmp_path / "c" / "a.pem").unlink()
    await eventually(lambda: "ends cannot be read" in caplog.text)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def test_a_daemon_with_an_ended_certificate_is_told_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LongAgo(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime(2020, 1, 1, tzinfo=tz)

    make_authority(tmp_path / "c", "lab", days=3650)
    past = SimpleNamespace(**{**vars(datetime), "datetime": LongAgo})
    monkeypatch.setattr(authority, "datetime", past)
    made = issue(tmp_path / "c", "a", ["127.0.0.1"], days=30)
    ca = tmp_path / "c" / "ca.pem"
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        context = NodeTls(TlsFiles(ca=ca, cert=made.cert, key=made.key)).server()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        async with Api(url, ca=ca) as api:
            with pytest.raises(PeerUnavailable) as caught:
                await api.status()
    finally:
        await runner.cleanup()
    assert "has expired" in caught.value.what
    assert "`elasticps certs issue` makes another" in (caught.value.hint or "")
