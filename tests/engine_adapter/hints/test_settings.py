"""The operator's settings for hints in requests."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from engine_adapter.hints.headers import HEADERS, SERVICE_TIER
from engine_adapter.hints.settings import TIERS, Settings, Tier, read_settings
from engine_adapter.hints.values import FIELDS
from store.errors import ConfigError

FILE = f"""
unusable = "ignore"
tenant_per_key = true

[tenants]
{sha256(b"secret").hexdigest()} = "team-a"

[service_tiers.priority]
class = "interactive"
priority = -1

[service_tiers.gold]
class = "gold"
"""


def test_a_file_says_what_tiers_and_keys_mean(tmp_path: Path) -> None:
    """Tiers that it does not name keep their meaning, and the environment's choice counts more than the file's."""
    path = tmp_path / "hints.toml"
    path.write_text(FILE)
    settings = read_settings({"SAGESCHED_HINTS_FILE": str(path)})
    assert settings.unusable == "ignore"
    assert settings.tenant_of(b"Bearer secret") == "team-a"
    assert settings.tiers["priority"] == Tier(service_class="interactive", priority=-1)
    assert settings.tiers["gold"] == Tier(service_class="gold")
    assert settings.tiers["flex"] == Tier(service_class="flex")
    assert read_settings({"SAGESCHED_HINTS_FILE": str(path), "SAGESCHED_HINTS": "refuse"}).unusable == "refuse"


def test_without_settings_keys_say_nothing() -> None:
    """And what cannot be used is refused."""
    settings = read_settings({})
    assert settings == Settings()
    assert settings.tenant_of(b"Bearer secret") is None
    assert [Settings(tenant_per_key=True).tenant_of(text) for text in (b"", b"Bearer ", b"Basic x")] == [None] * 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("unusable = 3", "unusable"),
        ("tenant = 3", "tenant"),
        ("[tenants]\nsecret = 'team-a'", "tenants"),
        ("[service_tiers.flex]\nweight = 3", "weight"),
        ("= 3", "cannot be read"),
    ],
)
def test_a_file_with_something_unknown_stops_the_start(tmp_path: Path, text: str, named: str) -> None:
    """The error names the file and what is wrong in it."""
    path = tmp_path / "hints.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        read_settings({"SAGESCHED_HINTS_FILE": str(path)})
    assert str(path) in str(error.value)


def test_the_manual_shows_settings_that_can_be_read_and_every_header(tmp_path: Path) -> None:
    """Headers and fields stand in its table, and its file is one."""
    manual = Path(__file__).resolve().parents[3].joinpath("docs", "service_levels.md").read_text(encoding="utf-8")
    path = tmp_path / "hints.toml"
    path.write_text(manual.split("```toml\n")[1].split("```")[0])
    settings = read_settings({"SAGESCHED_HINTS_FILE": str(path)})
    assert settings.tenant_of(b"Bearer secret") == "team-a"
    assert settings.tiers["flex"] == Tier(service_class="batch", priority=1)
    names = [*(name.decode() for name in HEADERS), *FIELDS, *TIERS, SERVICE_TIER.decode()]
    assert [name for name in names if f"`{name}`" not in manual] == []


def test_a_wrong_choice_or_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    """Neither is taken for the default."""
    with pytest.raises(ConfigError, match="perhaps"):
        read_settings({"SAGESCHED_HINTS": "perhaps"})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings({"SAGESCHED_HINTS_FILE": str(tmp_path / "none")})
