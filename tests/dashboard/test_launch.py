import subprocess
import sys
from pathlib import Path

from dashboard import launch


def test_the_command_names_script_port_and_addresses() -> None:
    """The line can be run as it is, on loopback unless told otherwise."""
    line = launch.command("http://127.0.0.1:8700", Path("/var/lib/history"), 8501)
    assert line[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(line[4]).is_file()
    assert line[line.index("--server.port") + 1] == "8501"
    assert line[line.index("--server.address") + 1] == "127.0.0.1"
    assert line[line.index("--") + 1 :] == ["--api", "http://127.0.0.1:8700", "--store", "/var/lib/history"]


def test_the_token_travels_in_the_environment_alone() -> None:
    """Other users of the machine can read an argument list."""
    variables = launch.environment("http://h", Path("/s"), "secret")
    assert variables == {
        "SAGESCHED_DASHBOARD_API": "http://h",
        "SAGESCHED_STORE__PATH": "/s",
        "SAGESCHED_HTTP__TOKEN": "secret",
    }


def test_launching_imports_no_streamlit() -> None:
    """Whoever starts the dashboard pays for a process, not for its imports."""
    code = "import sys, dashboard.launch; sys.exit('streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
