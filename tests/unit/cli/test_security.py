"""``elasticps certs``, ``elasticps token``, and what of them a daemon and a user are given."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from elasticps.cli.main import main
from elasticps.errors import UsageError
from elasticps.security.tls import TlsFiles
from tests.support.daemon_command import config


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELASTICPS_CONFIG", "/dev/null")
    for name in ("ELASTICPS_TOKENS", "ELASTICPS_TOKEN_FILE", "ELASTICPS_CA", "ELASTICPS_API"):
        monkeypatch.delenv(name, raising=False)


def mode(path: str) -> int:
    return Path(path).stat().st_mode & 0o777


def secured(*without: str) -> list[str]:
    """Options of a daemon of node a with everything that it needs, or not all of it."""
    main(["certs", "init", "c", "--node", "a=10.0.0.7,a.lan"])
    main(["token", "create", "root", "--role", "admin", "--tokens", "t.json", "--out", "root"])
    options = {"tls-ca": "c/ca.pem", "tls-cert": "c/a.pem", "tls-key": "c/a-key.pem"}
    options |= {"tokens": "t.json"}
    return ["--node=a", *(f"--{key}={it}" for key, it in options.items() if key not in without)]


# -- certs


def test_one_command_makes_an_authority_and_certificates_that_work(capsys):
    assert main(["certs", "init", "c", "--node", "a=10.0.0.7,a.lan", "--node", "b=10.0.0.8"]) == 0
    for name in ("a", "b"):
        files = TlsFiles(
            ca=Path("c/ca.pem"), cert=Path(f"c/{name}.pem"), key=Path(f"c/{name}-key.pem")
        )
        files.check(name)
    assert [mode(f"c/{name}-key.pem") for name in ("ca", "a", "b")] == [0o600] * 3
    assert "PRIVATE KEY" not in "".join(capsys.readouterr())


def test_a_certificate_names_its_node_its_hosts_and_its_end():
    main(["certs", "init", "c"])
    assert (
        main(["certs", "issue", "c", "a", "--host", "10.0.0.7", "--host", "a.lan", "--days", "9"])
        == 0
    )
    made = x509.load_pem_x509_certificate(Path("c/a.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a", "a.lan"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert 9 <= (made.not_valid_after_utc - made.not_valid_before_utc).days <= 10
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_nothing_is_overwritten(capsys):
    main(["certs", "init", "c", "--node", "a=10.0.0.7"])
    before = {path.name: path.read_bytes() for path in Path("c").iterdir()}
    assert main(["certs", "init", "c"]) == 2
    assert main(["certs", "issue", "c", "a"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("c").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["issue", "c", "A B"], "is no node"),
        (["issue", "c", "ca"], "the authority's own"),
        (["issue", "c", "../x"], "is no node"),
        (["issue", "c", "a..b"], "is no host name"),
        (["issue", "c", "a", "--host", "a b"], "neither a name nor an address"),
        (["issue", "c", "a", "--days", "0"], "1 to 36500"),
        (["issue", "none", "a"], "cannot be read"),
        (["init", "d", "--node", "a"], "NAME=HOST"),
        (["init", "d", "--node", "a=b", "--node", "a=b c"], "neither a name nor an address"),
    ],
)
def test_what_cannot_be_certified_is_refused_and_leaves_nothing(arguments, told, capsys):
    main(["certs", "init", "c"])
    capsys.readouterr()
    assert main(["certs", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in Path("c").iterdir()) == ["ca-key.pem", "ca.pem"]
    assert not Path("d").exists()


# -- token


def test_a_token_is_shown_once_or_goes_to_a_private_file(capsys):
    assert main(["token", "create", "alice", "--role", "submit", "--tokens", "t.json"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("eps_")
    assert shown not in Path("t.json").read_text()
    arguments = ["token", "create", "bob", "--role", "read", "--tokens", "t.json", "--out", "bob"]
    assert main(arguments) == 0
    assert Path("bob").read_text().strip() not in capsys.readouterr().out
    assert mode("bob") == mode("t.json") == 0o600
    assert main([*arguments[:2], "carol", *arguments[3:]]) == 2  # bob's file is there
    assert main(["token", "list", "--tokens", "t.json", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tokens"]
    assert [(row["name"], row["role"]) for row in rows] == [("alice", "submit"), ("bob", "read")]


def test_a_revoked_token_is_listed_no_more(capsys):
    main(["token", "create", "alice", "--role", "submit", "--tokens", "t.json"])
    assert main(["token", "revoke", "alice", "--tokens", "t.json"]) == 0
    assert main(["token", "revoke", "alice", "--tokens", "t.json"]) == 2
    capsys.readouterr()
    assert main(["token", "list", "--tokens", "t.json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_users_token_is_not_sent_in_the_clear_nor_read_from_an_open_file(capsys):
    main(["token", "create", "alice", "--role", "read", "--tokens", "t.json", "--out", "alice"])
    assert main(["--token-file", "alice", "nodes"]) == 2
    assert "not sent where others may read it" in capsys.readouterr().err
    Path("alice").chmod(0o644)
    assert main(["--api", "https://127.0.0.1:1", "--token-file", "alice", "nodes"]) == 2
    assert "others may read" in capsys.readouterr().err


# -- the daemon's options


def test_off_loopback_a_daemon_wants_tls_and_tokens(capsys):
    options = secured()
    made = config(*options, "--http=10.0.0.7:7400", "--data=10.0.0.7:7401")
    assert made.security is not None
    assert made.security.tokens.is_absolute()
    with pytest.raises(UsageError, match="without TLS and tokens"):
        config("--http=10.0.0.7:7400")
    assert config("--http=10.0.0.7:7400", "--allow-insecure-network").security is None
    with pytest.raises(UsageError, match="the network is to be insecure"):
        config(*options, "--allow-insecure-network")


def test_the_file_and_variables_say_it_as_the_flags_do(monkeypatch):
    flags = config(*secured())
    here = Path.cwd()
    Path("elasticps.toml").write_text(
        f'node = "a"\ntokens = "{here}/t.json"\n'
        f'[tls]\nca = "{here}/c/ca.pem"\ncert = "{here}/c/a.pem"\nkey = "{here}/c/a-key.pem"\n'
    )
    assert config("--config=elasticps.toml") == flags
    variables = {"NODE": "a", "TOKENS": "t.json", "TLS_CA": "c/ca.pem"}
    variables |= {"TLS_CERT": "c/a.pem", "TLS_KEY": "c/a-key.pem"}
    for name, text in variables.items():
        monkeypatch.setenv(f"ELASTICPS_{name}", text)
    assert config() == flags
    monkeypatch.setenv("ELASTICPS_ALLOW_PLAIN_ALL_REDUCE", "true")
    made = config()
    assert made.security is not None
    assert made.security.plain_all_reduce


def test_variables_of_users_commands_are_no_mistake_of_a_daemons(monkeypatch):
    monkeypatch.setenv("ELASTICPS_CA", "ca.pem")
    monkeypatch.setenv("ELASTICPS_TOKEN_FILE", "token")
    assert config().security is None


@pytest.mark.parametrize("missing", ["tls-ca", "tls-cert", "tls-key", "tokens"])
def test_half_of_it_is_refused_even_on_loopback(missing):
    options = secured(missing)
    with pytest.raises(UsageError, match="TLS and tokens go together"):
        config(*options)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda: Path("c/a-key.pem").unlink(), "cannot be read"),
        (lambda: Path("c/a-key.pem").chmod(0o644), "others may read"),
        (lambda: Path("c/a.pem").write_text("nonsense"), "no certificate"),
        (lambda: Path("t.json").chmod(0o644), "others may read"),
        (lambda: Path("t.json").write_text("{"), "not a file of tokens"),
    ],
)
def test_files_that_are_wrong_end_the_start_and_never_fall_back(damage, told):
    options = secured()
    damage()
    with pytest.raises(UsageError, match=told):
        config(*options)


def test_an_etcd_across_the_network_needs_tls_too():
    options = secured()
    with pytest.raises(UsageError, match=r"etcd at 10\.0\.0\.5:2379 without TLS"):
        config(*options, "--etcd=10.0.0.5:2379")
    config(*options, "--etcd=https://10.0.0.5:2379", "--etcd-ca=c/ca.pem")
    config(*options, "--etcd=127.0.0.1:2379")


def test_openssl_itself_takes_the_certificates():
    secured()
    context = ssl.create_default_context(cafile="c/ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain("c/a.pem", "c/a-key.pem")
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain("c/a.pem", "c/a-key.pem")
    client = context.wrap_bio(ours, theirs, server_hostname="a.lan")
    other = server.wrap_bio(theirs, ours, server_side=True)
    for _ in range(3):
        for end in (client, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() == "TLSv1.3"
