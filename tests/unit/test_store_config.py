"""What cannot work is refused before anything is opened, and the field is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from elasticps.errors import UsageError
from elasticps.store import StoreConfig

PEM = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "some.pem"
    path.write_text(PEM)
    path.chmod(0o600)
    return path


def refused(**settings: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        StoreConfig(**{"endpoints": ("h:1",), **settings})
    return caught.value


def test_endpoints_with_and_without_a_scheme_are_taken() -> None:
    config = StoreConfig(endpoints=("a:1", "http://10.0.0.1:2379", "http://[::1]:65535/"))
    assert config.targets == ("a:1", "10.0.0.1:2379", "[::1]:65535")
    assert not config.tls
    assert StoreConfig(endpoints=("https://a:1",)).tls


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host",
        "host:",
        ":2379",
        "host:0",
        "host:70000",
        "host:-1",
        "host:port",
        "ftp://host:1",
        "unix:///tmp/x",
        "http://host:1/path",
        "http://user:secret@host:1",
        "host:1?x=y",
        "a:1,b:2",
    ],
)
def test_a_bad_endpoint_is_refused(endpoint: str) -> None:
    error = refused(endpoints=("good:1", endpoint))
    assert error.field == "endpoints"


def test_no_endpoint_is_refused() -> None:
    assert refused(endpoints=()).field == "endpoints"


def test_a_port_out_of_range_names_the_range() -> None:
    assert refused(endpoints=("host:70000",)).limit == "1 to 65535"


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
def test_a_missing_or_foreign_file_is_refused_and_never_left_out(
    field: str, tmp_path: Path
) -> None:
    error = refused(**{field: tmp_path / "absent.pem"})
    assert error.field == field
    assert error.where == str(tmp_path / "absent.pem")
    (tmp_path / "foreign").write_text("hello")
    assert refused(**{field: tmp_path / "foreign"}).field == field
    assert refused(**{field: tmp_path}).field == field


def test_certificate_and_key_go_together(pem: Path) -> None:
    assert refused(cert=pem).field == "key"
    assert refused(key=pem).field == "cert"


def test_a_key_that_others_may_read_is_refused(pem: Path) -> None:
    pem.chmod(0o644)
    assert refused(cert=pem, key=pem).hint == f"chmod 600 {pem}"


def test_tls_is_never_mixed_with_plaintext(pem: Path) -> None:
    assert refused(endpoints=("http://a:1",), ca=pem).field == "endpoints"
    assert refused(endpoints=("http://a:1", "https://b:1")).field == "endpoints"
    assert StoreConfig(endpoints=("a:1", "https://b:1"), ca=pem).tls


def test_user_name_and_password_go_together() -> None:
    assert refused(username="me").field == "password"
    assert refused(password="secret").field == "username"


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf])
def test_a_timeout_that_is_no_time_is_refused(timeout_s: float) -> None:
    assert refused(request_timeout_s=timeout_s).field == "request_timeout_s"


def test_the_password_is_not_shown() -> None:
    config = StoreConfig(endpoints=("a:1",), username="me", password="hunter2")
    assert "hunter2" not in repr(config)
