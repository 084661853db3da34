"""Bad input by the command line and the configuration: exit 2, one error, and nothing is begun."""

from __future__ import annotations

import datetime
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization

from elasticps.cli.main import main
from elasticps.security import authority

pytestmark = pytest.mark.bad_input

CONFIG = "elasticps.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A command line in an empty folder, and what its one error says. ``has`` makes its files."""

    args: tuple[str, ...]
    field: str
    says: str = ""
    has: Callable[[], object] = lambda: None


def daemon(*args: str, field: str, says: str = "") -> Row:
    return Row(args=("daemon", *args), field=f"field {field}", says=says)


def job(*args: str, says: str, field: str = "") -> Row:
    return Row(args=("run", *args, "train.py"), field=field, says=says)


def file(text: str | bytes, field: str, says: str = "", mode: int = 0o644) -> Row:
    """A daemon whose configuration holds this."""

    def write() -> None:
        path = Path(CONFIG)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)

    where = f"field {field}" if field else ""
    return Row(args=("daemon", "--config", CONFIG), field=where, says=says, has=write)


def secured(*args: str, field: str, says: str, spoil: Callable[[], object]) -> Row:
    """A daemon that listens off loopback, with its files, once ``spoil`` has been at them."""

    def write() -> None:
        assert main(["certs", "init", "c", "--node", "a=10.0.0.7"]) == 0
        assert main(["certs", "issue", "c", "b", "--host", "10.0.0.8"]) == 0
        admin = ("--role", "admin", "--tokens", "t.json", "--out", "root")
        assert main(["token", "create", "root", *admin]) == 0
        spoil()

    options = args or (
        *("--node=a", "--http=10.0.0.7:7400", "--data=10.0.0.7:0"),
        *("--tls-ca=c/ca.pem", "--tls-cert=c/a.pem", "--tls-key=c/a-key.pem", "--tokens=t.json"),
    )
    where = f"field {field}" if field else ""
    return Row(args=("daemon", *options), field=where, says=says, has=write)


def gone(path: str) -> Callable[[], None]:
    return lambda: Path(path).unlink()


def holds(path: str, content: bytes) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(content)


def opened(path: str, mode: int) -> Callable[[], None]:
    return lambda: Path(path).chmod(mode)


def in_place(source: str, target: str) -> Callable[[], object]:
    return lambda: Path(target).write_bytes(Path(source).read_bytes())


def expired() -> None:
    """The certificate of node a, as it was issued two years ago for thirty days."""
    for name in ("a.pem", "a-key.pem"):
        Path("c", name).unlink()
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=730)
    clock = SimpleNamespace(now=lambda _: then)
    past = SimpleNamespace(datetime=clock, timedelta=datetime.timedelta, UTC=datetime.UTC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "datetime", past)
        authority.issue(Path("c"), "a", ["10.0.0.7"], days=30)


def locked() -> None:
    """The key of node a, with a password."""
    path = Path("c/a-key.pem")
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )


LESS = ("--node=a", "--http=10.0.0.7:7400", "--tls-ca=c/ca.pem", "--tls-cert=c/a.pem")
DEEP = "a = " + "[" * 100_000

ROWS = {
    # a daemon's options
    "port 70000": daemon("--http", "127.0.0.1:70000", field="http", says="0 to 65535"),
    "port 70000 of the data plane": daemon("--data", "h:70000", field="data", says="0 to 65535"),
    "port 70000 of etcd": daemon("--etcd", "h:70000", field="etcd.endpoints", says="1 to 65535"),
    "port -1": daemon("--http", "127.0.0.1:-1", field="http", says="0 to 65535"),
    "no port": daemon("--http", "127.0.0.1", field="http", says="host:port"),
    "one port for two": daemon(
        "--http", "127.0.0.1:1", "--data", "127.0.0.1:1", field="data", says="cannot share"
    ),
    "the network without TLS": daemon("--http", "0.0.0.0:7400", field="http", says="loopback"),
    "an unknown flag": Row(args=("daemon", "--lable", "a=b"), field="--lable", says="--label"),
    "a weight of NaN": daemon("--weight", "nan", field="weight", says="more than 0"),
    "a lease of NaN seconds": daemon(
        "--lease-ttl", "nan", field="lease_ttl", says="a whole number"
    ),
    "a lease of 600 seconds": daemon("--lease-ttl", "600", field="lease_ttl", says="1 to 60"),
    "a drain of -1 seconds": daemon(
        "--drain-timeout", "-1", field="drain_timeout", says="0 to 86400"
    ),
    "a node of another alphabet": daemon("--node", "a/b", field="node", says="[a-z0-9]"),
    "a label that is a script": daemon("--label", "a=<script>", field="labels", says="key=value"),
    "a folder of two lines": daemon("--state-dir", "a\nb", field="state_dir", says="one line"),
    # the configuration
    "an unknown key": file("worker = 2", "worker", "did you mean workers?"),
    "an unknown key of a section": file(
        "[etcd]\nendpoint = ['a:1']", "etcd.endpoint", "did you mean etcd.endpoints?"
    ),
    "port 70000 in the file": file("http = '127.0.0.1:70000'", "http", "0 to 65535"),
    "NaN in the file": file("weight = nan", "weight", "more than 0"),
    "a text for a number": file("workers = '2'", "workers", "a whole number"),
    "a file that everyone may write": file("", "config", f"chmod o-w {CONFIG}", 0o646),
    "a file that is no TOML": file("node =", "config", "not TOML"),
    "a file that is no UTF-8": file(b"node = '\xff\xfe'", "config", "not TOML"),
    "a key twice": file("node = 'a'\nnode = 'b'", "config", "not TOML"),
    "a list nested 100,000 deep": file(DEEP, "config", "not TOML"),
    "a file of more than 1 MiB": file("# " + "x" * (1 << 20), "config", "1048576 bytes"),
    "a file that is not there": Row(
        args=("daemon", "--config", "none.toml"), field="field config", says="none.toml"
    ),
    "a folder for a file": Row(
        args=("daemon", "--config", "."), field="field config", says="cannot be read"
    ),
    # a job's options
    "0 replicas": job("--replicas", "0", says="--replicas"),
    "8 replicas": job("--replicas", "8", says="1<=x<=7"),
    "a staleness of -1": job("--consistency", "bounded", "--staleness", "-1", says="--staleness"),
    "a staleness of NaN": job("--consistency", "bounded", "--staleness", "nan", says="'nan'"),
    "a staleness of 10^10": job(
        *("--consistency", "bounded", "--staleness", "10000000000"),
        field="field staleness",
        says="0 to 1000000000",
    ),
    "a staleness in sync": job("--staleness", "3", field="field staleness", says="bounded"),
    "more copies to wait for than nodes": job(
        "--replicas", "3", "--min-insync", "3", field="field min_insync", says="1 to 1"
    ),
    "10^6 nodes": job("--nodes", "1000000", says="--nodes"),
    "a block of a byte": job("--block-bytes", "1", says="4KiB to 128MiB"),
    "a policy that nobody has": job("--nonfinite", "ignore", says="'apply', 'refuse'"),
    "no script": Row(args=("run", "none.py"), field="none.py", says="does not exist"),
    "a folder for a script": Row(args=("run", "."), field="SCRIPT", says="is a directory"),
    "checkpoints without a place": job(
        "--checkpoint-every", "5", field="field checkpoint_dir", says="no place"
    ),
    # secrets: what is wrong ends the start, and never falls back to plaintext
    "a key file that is missing": secured(
        field="tls.key", says="No such file", spoil=gone("c/a-key.pem")
    ),
    "a key that all may read": secured(
        field="tls.key", says="chmod 600", spoil=opened("c/a-key.pem", 0o644)
    ),
    "a key that is garbage": secured(
        field="tls.key", says="together", spoil=holds("c/a-key.pem", b"\0")
    ),
    "a key with a password": secured(field="tls.key", says="without", spoil=locked),
    "another's key": secured(
        field="tls.key", says="together", spoil=in_place("c/b-key.pem", "c/a-key.pem")
    ),
    "an expired certificate": secured(field="tls.cert", says="valid until", spoil=expired),
    "another node's certificate": secured(
        field="tls.cert", says="not one of node a", spoil=in_place("c/b.pem", "c/a.pem")
    ),
    "a certificate that is garbage": secured(
        field="tls.cert", says="no certificate", spoil=holds("c/a.pem", b"\xff\xfe")
    ),
    "an authority that is missing": secured(
        field="tls.ca", says="No such file", spoil=gone("c/ca.pem")
    ),
    "tokens that are missing": secured(field="tokens", says="No such file", spoil=gone("t.json")),
    "tokens that all may read": secured(
        field="tokens", says="chmod 600", spoil=opened("t.json", 0o644)
    ),
    "tokens that are no UTF-8": secured(
        field="tokens", says="not a file of tokens", spoil=holds("t.json", b'{"tokens": ["\xff"]}')
    ),
    "tokens nested 100,000 deep": secured(
        field="tokens",
        says="not a file of tokens",
        spoil=holds("t.json", b'{"x": ' + b"[" * 100_000),
    ),
    "half of what TLS needs": secured(
        *LESS, field="tls.key", says="go together", spoil=lambda: None
    ),
    # what a user says to a cluster
    "an API at port 70000": Row(args=("--api", "http://h:70000", "nodes"), field="70000"),
    "an API that is no URL": Row(args=("--api", "ftp://h", "nodes"), field="--api"),
    "a token over plain HTTP": Row(
        args=("--token-file", "token", "nodes"),
        field="field api",
        says="not sent where others may read it",
        has=holds("token", b"eps_x"),
    ),
    "a token file that is missing": Row(
        args=("--api", "https://h:1", "--token-file", "none", "nodes"),
        field="field token_file",
        says="No such file",
    ),
    "an unknown command": Row(args=("statuss",), field="statuss"),
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ELASTICPS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ELASTICPS_CONFIG", os.devnull)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("raise SystemExit('it ran')")


def everything() -> dict[str, tuple[int, bytes]]:
    """Every file below this folder, with its mode."""
    return {
        str(path): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in Path().rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_command_line_exits_2_and_begins_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[name]
    row.has()
    before = everything()
    capsys.readouterr()
    assert main(row.args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert "internal error" not in err
    assert row.field in err
    assert row.says in err
    assert "PRIVATE KEY" not in err
    assert everything() == before


def test_more_copies_than_nodes_are_told_and_the_job_runs_with_what_there_is() -> None:
    Path("train.py").write_text(
        "import elasticps, torch\n"
        "with elasticps.join() as run:\n"
        "    model = torch.nn.Linear(2, 1)\n"
        "    optimizer = run.optimizer(model, 'sgd', lr=0.1)\n"
        "    for _ in range(3):\n"
        "        optimizer.zero_grad()\n"
        "        model(torch.ones(1, 2)).sum().backward()\n"
        "        optimizer.step()\n"
    )
    command = ["-m", "elasticps", "run", "--nodes", "2", "--replicas", "3", "train.py"]
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "warning: replicas of 3 on 2 nodes: each block has 2 copies (--nodes 3" in ran.stderr
    assert "succeeded after 3 rounds" in ran.stderr
