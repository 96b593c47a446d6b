from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from controller.config import Config, load_config, meaning, printed
from store.errors import ConfigError


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each layer hides the ones below it, key by key."""
    file = tmp_path / "sagesched.toml"
    file.write_text('mode = "off"\n[store]\nseal_interval_s = 7.0\nretention_days = 3\n[learning]\nclusters = 9\n')
    environment = {"SAGESCHED_MODE": "shadow", "SAGESCHED_STORE__SEAL_INTERVAL_S": "8"}
    config = load_config({"mode": "on", "store": {"path": None}}, file=file, environment=environment)
    assert config.mode == "on"
    assert config.store.seal_interval_s == 8.0
    assert config.store.retention_days == 3.0
    assert config.learning.clusters == 9
    assert config.http.port == 8700


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ({"store": {"pth": "/x"}}, {}, ("store.pth", "'/x'", "flag", "store.path")),
        ({}, {"SAGESCHED_HTPP__PORT": "1"}, ("htpp", "environment", "http")),
        ({}, {"SAGESCHED_HTTP__PORT": "many"}, ("http.port", "'many'", "environment", "integer")),
        ({"mode": "fast"}, {}, ("mode", "'fast'", "'off', 'shadow' or 'on'")),
        ({"engine": {"lease_s": 0.0}}, {}, ("engine.lease_s", "0.0", "greater than or equal to 0.2")),
        ({}, {"SAGESCHED_POLICY__BOOST_PER_S": "inf"}, ("policy.boost_per_s", "'inf'", "finite number")),
        ({}, {"SAGESCHED_STORE__RETENTION_GB": "inf"}, ("store.retention_gb", "'inf'", "finite number")),
        ({"store": {"retention_gb": 1e300}}, {}, ("store.retention_gb", "1e+300", "less than or equal to 1000000")),
        ({"store": {"retention_days": 1e9}}, {}, ("store.retention_days", "less than or equal to 36500")),
        (
            {"tenants": {"weights": {"a": 1e-300}}},
            {},
            ("tenants.weights.a", "1e-300", "greater than or equal to 0.000001"),
        ),
        ({"tenants": {"default_weight": 1e-300}}, {}, ("tenants.default_weight", "greater than or equal to 0.000001")),
        ({"engine": {"endpoint": "udp://0.0.0.0:1"}}, {}, ("engine.endpoint", "ipc:///", "tcp://HOST:PORT")),
        ({"http": {"port": True}}, {}, ("http.port", "True", "flag", "must be a number")),
        ({"classes": {"chat": {"ttft_s": True}}}, {}, ("classes.chat.ttft_s", "True", "must be a number")),
        ({}, {"SAGESCHED_STORE__PATH": ""}, ("store.path", "''", "environment", "name a folder")),
        ({}, {"SAGESCHED_STORE": "x", "SAGESCHED_STORE__PATH": "y"}, ("SAGESCHED_STORE__PATH", "unset one")),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_origin(
    flags: dict[str, object], environment: dict[str, str], words: tuple[str, ...]
) -> None:
    """The message says which key, which value, where it came from, and what would be right."""
    with pytest.raises(ConfigError) as caught:
        load_config(flags, environment=environment)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_that_others_can_reach_needs_a_token() -> None:
    """Listening beyond loopback without a token is refused with the remedy, and accepted with one."""
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*set http\.token"):
        load_config({"http": {"host": "0.0.0.0"}}, environment={})
    config = load_config({"http": {"host": "0.0.0.0"}}, environment={"SAGESCHED_HTTP__TOKEN": "s3cret-and-long-enough"})
    assert config.http.token is not None
    assert config.http.token.get_secret_value() == "s3cret-and-long-enough"


def test_the_token_is_never_shown() -> None:
    """Neither the printed configuration nor a message about a mistyped key holds the token."""
    config = load_config({}, environment={"SAGESCHED_HTTP__TOKEN": "s3cret-and-long-enough"})
    assert "s3cret-and-long-enough" not in repr(config) + repr(printed(config))
    for section, key in (("htp", "token"), ("http", "tokn"), ("http", "secret"), ("store", "password")):
        with pytest.raises(ConfigError, match="unknown setting") as caught:
            load_config({section: {key: "s3cret-and-long-enough"}}, environment={})
        assert "s3cret-and-long-enough" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "token"),
    [("10.0.0.1", "q7z"), ("127.0.0.1", "q7z"), ("127.0.0.1", "no\nheader"), ("::", "tökentökentökentöken")],
)
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused(host: str, token: str) -> None:
    """On this machine too: a proxy may bring others there; the token itself is not repeated."""
    with pytest.raises(ConfigError, match="token") as caught:
        load_config({"http": {"host": host, "token": token}}, environment={})
    assert token not in str(caught.value)


@pytest.mark.parametrize("text", ["mode = ", 'mode = "on"\nmode = "off"', "\x00"])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    """Bad TOML names the file."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(file=file, environment={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is an error, not an empty configuration."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file=tmp_path / "none.toml", environment={})


def test_the_tree_is_frozen() -> None:
    """Nothing can change a setting after the check."""
    config = load_config(environment={})
    with pytest.raises(ValidationError, match="frozen"):
        config.mode = "off"


def test_variables_of_the_plugin_and_the_dashboard_are_no_unknown_keys() -> None:
    """One environment may serve engine, controller and dashboard; the endpoint and its group are shared."""
    environment = {
        "SAGESCHED_ENGINE_ID": "gpu-7",
        "SAGESCHED_DASHBOARD_API": "http://127.0.0.1:1",
        "SAGESCHED_ENDPOINT": "ipc:///run/x/engine.sock",
        "SAGESCHED_SOCKET_GROUP": "2000",
    }
    engine = load_config(environment=environment).engine
    assert (engine.endpoint, engine.socket_group) == ("ipc:///run/x/engine.sock", 2000)


def test_what_kubernetes_says_of_a_service_is_no_unknown_key() -> None:
    """A Service called `sagesched` or `sagesched-api` is in every pod's environment; a setting without its section is not."""
    links = {
        "SAGESCHED_SERVICE_HOST": "10.0.0.1",
        "SAGESCHED_SERVICE_PORT": "8700",
        "SAGESCHED_SERVICE_PORT_API": "8700",
        "SAGESCHED_PORT": "tcp://10.0.0.1:8700",
        "SAGESCHED_API_PORT_8700_TCP": "tcp://10.0.0.1:8700",
        "SAGESCHED_API_PORT_8700_TCP_ADDR": "10.0.0.1",
    }
    assert load_config(environment={**links, "SAGESCHED_HTTP__PORT": "9000"}).http.port == 9000
    for name, value in {"SAGESCHED_PORT": "9000", "SAGESCHED_HTTP__PROT_8700_TCP": "x"}.items():
        with pytest.raises(ConfigError, match="unknown setting"):
            load_config(environment={name: value})


def test_every_setting_is_described() -> None:
    """No setting is without words for the documentation and `doctor`."""
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for key, setting in (inner or {name: field}).items():
            assert setting.description, f"{name}.{key} has no description"


def test_what_stands_under_names_is_described_and_printed() -> None:
    """A configured class setting by setting, a weight by its tenant, each with its meaning."""
    config = load_config({"classes": {"chat": {"ttft_s": 2}}, "tenants": {"weights": {"a.b": 3}}}, environment={})
    lines = dict(printed(config))
    assert (lines["classes.chat.ttft_s"], lines["classes.chat.objective"]) == ("2.0", "0.99")
    assert lines["tenants.weights.a.b"] == "3.0"
    assert "classes" not in lines
    assert [key for key in lines if not meaning(key)] == []
    assert meaning("classes.chat.e2e_s") == "longest time from arrival to the end"
    with pytest.raises(ConfigError, match=r"did you mean classes\.NAME\.ttft_s"):
        load_config({"classes": {"chat": {"ttft": 2}}}, environment={})
