"""Where a setting's value comes from, and what the configuration may not say."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from elasticps.cli.main import main
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.settings import SETTINGS, default_of, from_text, to_text
from elasticps.daemon.sources import load
from elasticps.errors import UsageError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "systemd" / "elasticps.toml"
DOCS = ROOT / "docs" / "configuration.md"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """``file(text)``: a configuration that holds it, named by ELASTICPS_CONFIG."""
    for name in [name for name in os.environ if name.startswith("ELASTICPS_")]:
        monkeypatch.delenv(name)

    def write(text: str) -> Path:
        path = tmp_path / "elasticps.toml"
        path.write_text(text)
        path.chmod(0o644)
        monkeypatch.setenv("ELASTICPS_CONFIG", str(path))
        return path

    return write


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(file):
    path = file('cluster = "of-file"\nnode = "of-file"\nhttp = "127.0.0.1:1"\n[etcd]\nuser = "me"')
    variables = {"ELASTICPS_CLUSTER": "of-variable", "ELASTICPS_NODE": "of-variable"}
    found = load({"cluster": "of-flag"}, {**os.environ, **variables}).values
    told = {key: (found[key].value, found[key].source) for key in ("cluster", "node", "http")}
    assert told == {
        "cluster": ("of-flag", "--cluster"),
        "node": ("of-variable", "ELASTICPS_NODE"),
        "http": (("127.0.0.1", 1), str(path)),
    }
    assert (found["data"].source, found["etcd.user"].value) == ("default", "me")


def test_show_says_each_value_and_its_source(file, monkeypatch, capsys):
    path = file("workers = 3\n[labels]\nzone = 'a'\nrack = '12'")
    monkeypatch.setenv("ELASTICPS_WEIGHT", "2.5")
    assert main(["config", "show", "--node", "n1"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["file:"] == str(path)
    assert shown["workers"] == f"3  ({path})"
    assert shown["weight"] == "2.5  (ELASTICPS_WEIGHT)"
    assert shown["node"] == "n1  (--node)"
    assert shown["labels"] == f"zone=a,rack=12  ({path})"
    assert shown["zone"] == "a  (the label zone)"
    assert shown["cluster"] == "default"
    assert set(shown) - {"file:"} == {setting.key for setting in SETTINGS}
    assert main(["config", "show", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["workers"] == {"key": "workers", "value": "3", "source": str(path), "reload": True}


def test_show_prints_what_it_found_before_it_says_what_is_wrong(file, capsys):
    path = file("lease_ttl = 600")
    assert main(["config", "show"]) == 2
    out, err = capsys.readouterr()
    assert "lease_ttl" in out
    assert err == f"error: {path}: 600 is out of range (field lease_ttl) (limit: 1 to 60)\n"


@pytest.mark.parametrize(
    ("text", "field", "rest"),
    [
        ("worker = 2", "worker", "did you mean workers?"),
        ("[etcd]\nendpoint = ['a:1']", "etcd.endpoint", "did you mean etcd.endpoints?"),
        ("password_file = '/x'", "password_file", "did you mean etcd.password_file?"),
        ("qqqqqq = 2", "qqqqqq", "docs/configuration.md"),
        ("workers = '2'", "workers", "a whole number"),
        ("workers = true", "workers", "a whole number"),
        ("workers = 1.5", "workers", "a whole number"),
        ("weight = nan", "weight", "more than 0"),
        ("kept_jobs = -1", "kept_jobs", "0 to 100000"),
        ("allow_insecure_network = 1", "allow_insecure_network", "true or false"),
        ("http = 7400", "http", "host:port"),
        ("http = '127.0.0.1:70000'", "http", "0 to 65535"),
        ("labels = ['a=b']", "labels", "a table of texts"),
        ("[labels]\nrack = 12", "labels", "a table of texts"),
        ("state_dir = 'relative'", "state_dir", "an absolute path"),
        ("[etcd]\nendpoints = 'a:1'", "etcd.endpoints", "a list of texts"),
        ("etcd = 'a:1'", "etcd", "did you mean"),
        ("log_level = 'loud'", "log_level", "debug, info, warning, error"),
        ("node =", "config", "not TOML"),
        ("node = 'a'\nnode = 'b'", "config", "not TOML"),
        ("a = " + "[" * 100_000, "config", "not TOML"),
        ("# " + "x" * (1 << 20), "config", "1048576 bytes"),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_configuration_exits_2_and_names_file_key_and_limit(file, text, field, rest, capsys):
    path = file(text)
    assert main(["config", "show"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ")
    assert f"(field {field})" in err
    assert rest in err


def test_a_configuration_that_everyone_may_write_is_refused(file, capsys):
    path = file("")
    path.chmod(0o646)
    assert main(["daemon"]) == 2
    assert f"chmod o-w {path}" in capsys.readouterr().err


def test_a_configuration_that_is_named_and_missing_is_refused(capsys):
    assert main(["daemon", "--config", "/nowhere/elasticps.toml"]) == 2
    assert "/nowhere/elasticps.toml: the configuration cannot be read" in capsys.readouterr().err


def test_an_unknown_variable_is_refused_with_the_nearest_name(file, monkeypatch, capsys):
    file("")
    monkeypatch.setenv("ELASTICPS_LABLES", "a=b")
    assert main(["daemon"]) == 2
    assert "did you mean ELASTICPS_LABELS?" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["true", "1", "yes"])
def test_a_switch_can_be_a_variable(file, text):
    file("")
    environment = {**os.environ, "ELASTICPS_ALLOW_INSECURE_NETWORK": text}
    assert load({}, environment).values["allow_insecure_network"].value is True
    with pytest.raises(UsageError, match="true or false"):
        load({}, {**environment, "ELASTICPS_ALLOW_INSECURE_NETWORK": "maybe"})


def test_every_field_of_the_configuration_has_a_setting():
    settable = {setting.field_name for setting in SETTINGS}
    assert {field.name for field in fields(DaemonConfig)} - {"etcd", "security"} <= settable


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_value_reads_back_from_its_own_text(setting):
    value = default_of(setting)
    text = to_text(setting, value)
    assert not text or from_text(setting, text) == value


def test_the_docs_table_is_this_one():
    rows = []
    for setting in SETTINGS:
        default = setting.default_text or to_text(setting, default_of(setting)) or "none"
        name = f"`{setting.key}`" + (" (r)" if setting.reload else "")
        given = f"`{setting.flag_name}` | `{setting.variable_name}`"
        rows.append(f"| {name} | {given} | {default} | {setting.help} |")
    assert "\n".join(rows) in DOCS.read_text(), "the table is to be:\n" + "\n".join(rows)


def test_the_example_explains_every_key_and_shows_its_default(file):
    text = EXAMPLE.read_text()
    assert tomllib.loads(text) == {}, "all of it is commented out: an installation is the default"
    path = file(re.sub(r"(?m)^#(?=[a-z_]+ = |\[)", "", text))
    given = {key for key, each in load({}).values.items() if each.source == str(path)}
    assert given == {setting.key for setting in SETTINGS}
    for setting in SETTINGS:
        if setting.default_text or default_of(setting) in (None, {}):
            continue  # the machine's own, or an example in place of nothing
        assert load({}).values[setting.key].value == default_of(setting), setting.key
        assert setting.help.split(":")[0].split(";")[0].rstrip(".") in text.replace("\n# ", " ")
