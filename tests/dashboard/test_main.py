import sys
from pathlib import Path

import pytest

from dashboard.__main__ import command


def test_the_command_names_script_port_and_addresses() -> None:
    """Streamlit is given its options and the script, and the script what is for it."""
    line = command(["--api", "http://127.0.0.1:8700", "--store", "/var/lib/history", "--port", "8502"])
    assert line[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(line[4]).is_file()
    assert line[line.index("--server.port") + 1] == "8502"
    assert line[line.index("--") + 1 :] == ["--api", "http://127.0.0.1:8700", "--store", "/var/lib/history"]


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    """It has no login of its own."""
    line = command([])
    assert line[line.index("--server.address") + 1] == "127.0.0.1"
    assert line[line.index("--server.port") + 1] == "8501"
    assert line[-1] == "--", "the script finds the addresses in the environment"
    line = command(["--host", "127.0.0.2"])
    assert line[line.index("--server.address") + 1] == "127.0.0.2"


def test_a_token_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Other users of the machine can read an argument list; the environment alone carries it."""
    with pytest.raises(SystemExit):
        command(["--token", "secret"])
    assert "unrecognized arguments" in capsys.readouterr().err
