"""Addresses: what is accepted comes back as it was, what is refused names its field and limit."""

from __future__ import annotations

import pytest

from elasticps.errors import UsageError
from elasticps.wire.address import MAX_UNIX_PATH, Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:7000", Address.tcp("127.0.0.1", 7000)),
        ("tcp:[::1]:7000", Address.tcp("::1", 7000)),
        ("tcp:node-1.example.org:0", Address.tcp("node-1.example.org", 0)),
        ("tcp:localhost:65535", Address.tcp("localhost", 65535)),
        ("unix:/run/elasticps/a b:c.sock", Address.unix("/run/elasticps/a b:c.sock")),
    ],
)
def test_address_survives_its_text_form(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tcp:127.0.0.1:70000", "port"),
        ("tcp:127.0.0.1:-1", "port"),
        ("tcp:127.0.0.1:+80", "port"),
        ("tcp:127.0.0.1:٨٠", "port"),
        ("tcp:127.0.0.1:", "port"),
        ("tcp:" + "9" * 5000, "port"),
        ("tcp:127.0.0.1:" + "9" * 5000, "port"),
        ("tcp::80", "host"),
        ("tcp:::1:80", "host"),
        ("tcp:[127.0.0.1]:80", "host"),
        ("tcp:[::zz]:80", "host"),
        ("tcp:a\r\nb:80", "host"),
        ("tcp:" + "a" * 300 + ":80", "host"),
        ("tcp:" + "a" * 64 + ":80", "host"),
        ("unix:", "path"),
        ("unix:relative.sock", "path"),
        ("unix:/a\0b", "path"),
        ("unix:/" + "x" * MAX_UNIX_PATH, "path"),
        ("unix:/" + "é" * 60, "path"),
        ("udp:127.0.0.1:80", "scheme"),
        ("127.0.0.1:80", "scheme"),
        ("", "scheme"),
    ],
)
def test_bad_address_names_its_field(text: str, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(text)
    assert caught.value.field == field
    assert caught.value.limit or caught.value.hint or caught.value.what


def test_longest_unix_path_is_accepted() -> None:
    path = "/" + "x" * (MAX_UNIX_PATH - 1)
    assert Address.parse(f"unix:{path}").path == path


def test_port_out_of_range_is_refused_when_built_in_code() -> None:
    with pytest.raises(UsageError, match="65535"):
        Address.tcp("localhost", 70_000)
