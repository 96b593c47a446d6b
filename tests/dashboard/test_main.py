import os
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard.__main__ import ENTRY, options, parsed
from dashboard.access.settings import access_settings

TOKEN = "zebra-token-0123456789abcdef"


def test_streamlit_is_given_its_options_and_the_entry_exists() -> None:
    """Port and address as asked, nothing told to others, and no name but those that the gate lets in."""
    given = parsed(["--api", "http://127.0.0.1:8700", "--port", "8502", "--name", "dash.example"])
    found = options(given, access_settings(given.host, given.name, {}))
    assert ENTRY.is_file()
    assert (found["server.port"], found["server.address"]) == (8502, "127.0.0.1")
    assert found["browser.gatherUsageStats"] is False
    assert found["server.allowedHosts"] == ["localhost", "127.0.0.1", "::1", "127.0.0.1", "dash.example"]


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    """Beyond it there must be a token to log in with."""
    assert (parsed([]).host, parsed([]).port) == ("127.0.0.1", 8501)
    assert parsed(["--host", "127.0.0.2"]).host == "127.0.0.2"


def test_a_token_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Other users of the machine can read an argument list; the environment alone carries it."""
    with pytest.raises(SystemExit):
        parsed(["--token", TOKEN])
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--host", "0.0.0.0", "--name", "d.example"], {}, "SAGESCHED_HTTP__TOKEN"),
        (["--host", "0.0.0.0"], {"SAGESCHED_HTTP__TOKEN": TOKEN}, "--name"),
        ([], {"SAGESCHED_STORE__PROMPTS": "true"}, "prompts"),
        (["--name", "http://d.example/"], {}, "no host name"),
    ],
)
def test_what_would_let_anybody_in_is_refused_at_the_start(
    arguments: list[str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    """One line that says what to do, code 2, and nothing listens."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAGESCHED_")}
    done = subprocess.run(
        [sys.executable, "-m", "dashboard", "--port", "1", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
