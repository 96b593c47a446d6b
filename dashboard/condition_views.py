"""What the controller says of its own condition, as frozen values."""

from __future__ import annotations

import msgspec

from store.http_api import View


class SettingView(View, frozen=True):
    """One setting of the configuration."""

    key: str
    value: str = ""
    meaning: str = ""


class WarningView(View, frozen=True):
    """One warning or error of the controller's log."""

    time_s: float
    level: str = ""
    logger: str = ""
    text: str = ""


class EncoderView(View, frozen=True):
    """What the semantic encoder did with the prompts that it was given."""

    encoded: int = 0
    dropped: int = 0
    errors: int = 0
    waiting: int = 0


class HealthView(View, frozen=True):
    """Answer of ``/api/health``."""

    configuration: tuple[SettingView, ...] = ()
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    recent_warnings: tuple[WarningView, ...] = ()
    encoder: EncoderView | None = None
    """None where there is none."""


class FindingView(View, frozen=True):
    """What one of doctor's checks found."""

    name: str
    state: str = ""
    text: str = ""
    remedy: str = ""


class DoctorView(View, frozen=True):
    """Answer of ``/api/doctor``."""

    time_s: float | None = None
    findings: tuple[FindingView, ...] = ()


class ModeView(View, frozen=True):
    """Answer to an order of a mode."""

    settings: dict[str, object] = msgspec.field(default_factory=dict)
