"""Configuration: one frozen tree from flags, environment, a TOML file and defaults, in that order.

Flags win over ``SAGESCHED_*`` (nested with two underscores: ``SAGESCHED_STORE__PATH``), those over the file, the file
over the defaults.
The whole tree is checked at start; an unknown key is an error, because it is most likely a typing mistake.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from engine_adapter.transport.keys import default_keys_path
from engine_adapter.transport.zmq_sockets import checked_endpoint, default_endpoint
from store.errors import ConfigError
from store.http_callers import is_loopback
from store.records import Mode

PREFIX = "SAGESCHED_"
"""Prefix of the environment variables of these settings."""
OTHERS = ("SAGESCHED_DASHBOARD_", "SAGESCHED_ENGINE_ID", "SAGESCHED_KEY_FILE")
"""Prefixes of the environment variables of the dashboard and the plugin."""
_SERVICE_LINK = re.compile(
    r"SAGESCHED_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_\w+)=.*|SAGESCHED_(?:[A-Z0-9]+_)*PORT=\w+://.*"
)
"""What Kubernetes puts into the environment of every pod for a Service whose name begins with `sagesched`."""
_SECRET = re.compile(r"pass|secret|cred|^http\.(?!host$|port$)|(^|\.)tok\w{0,3}$", re.IGNORECASE)
"""Values of keys like these may be secrets, even with a typing mistake in the key, and are shown in no message."""
SHARED = {
    "SAGESCHED_ENDPOINT": "SAGESCHED_ENGINE__ENDPOINT",
    "SAGESCHED_SOCKET_GROUP": "SAGESCHED_ENGINE__SOCKET_GROUP",
}
"""Variables that plugin and controller both read."""


NAMED = "NAME"
"""Stands in keys for a name of the operator's choice."""

LEAST_WEIGHT = 1e-6
"""Of a tenant; what one of a far smaller weight is charged would soon be no finite number."""

TOKEN_CHARACTERS = 16
"""Minimum length of a token; shorter ones could be guessed."""


def default_store_path() -> Path:
    """Default folder of the history, in the user's data directory."""
    base = os.environ.get("XDG_DATA_HOME")
    return Path(base) / "sagesched" if base else Path.home() / ".local" / "share" / "sagesched"


NUMBERS = (int, float, int | None, float | None)
"""Types of the settings that are numbers."""

IndexRule: TypeAlias = Literal["mean", "gittins"]
Objective: TypeAlias = Literal["mean", "balanced", "tail"]


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_meant(cls, given: object, about: ValidationInfo) -> object:
        """Refuse what would be read as something else: a truth value as a number, no path as the current folder."""
        expected = cls.model_fields[about.field_name].annotation if about.field_name else None
        if isinstance(given, bool) and expected in NUMBERS:
            raise ValueError("must be a number")
        if given == "" and expected is Path:
            raise ValueError("is empty: name a folder")
        return given


class EngineSection(Section):
    """How engines connect to the controller."""

    endpoint: str = Field(
        default_factory=default_endpoint, description="ipc:// or tcp:// address that engines connect to; tcp needs keys"
    )
    keys: Path = Field(default_factory=default_keys_path, description="folder of CURVE keys, made by `sagesched keys`")
    socket_group: int | None = Field(
        default=None, ge=0, description="group id, such as a pod's fsGroup, whose members may all use the ipc:// socket"
    )
    lease_s: float = Field(default=2.0, ge=0.2, le=60.0, description="silence after which an engine falls back to FCFS")

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str) -> str:
        try:
            return checked_endpoint(endpoint)
        except ConfigError:
            raise ValueError("must be ipc:///path/to/socket or tcp://HOST:PORT") from None


class LearningSection(Section):
    """How output lengths are learned."""

    clusters: int = Field(default=64, ge=1, le=4096, description="prompt clusters per model")
    encoder: Path | None = Field(
        default=None,
        description="folder of a sentence-transformers model that reads prompts too; nothing is downloaded",
    )
    tokenizer: Path | None = Field(
        default=None,
        description="folder of the served model, whose tokenizer turns token ids into text for the encoder, and text of /api/predict into ids",
    )
    history_answers: int = Field(
        default=20_000,
        ge=0,
        le=1_000_000,
        description="past answers that are learned again at start, unless learner.state holds what they taught",
    )
    guard: bool = Field(
        default=True, description="use the prior, or FCFS, while predictions are wrong; false always trusts them"
    )


class PolicySection(Section):
    """How requests are ordered and admitted."""

    name: str = Field(default="sage", description="policy: sage, sagesched-paper or fcfs")
    objective: Objective = Field(default="balanced", description="what the boost favours")
    index: IndexRule = Field(
        default="mean", description="order by the mean of the remaining cost, or by its gittins index"
    )
    boost_per_s: float | None = Field(
        default=None, ge=0.0, le=1e6, description="γ of the boost in place of the objective's own"
    )
    gate: bool = Field(default=True, description="admit by expected growth; false leaves admission to the engine")
    gate_horizon_tokens: int | None = Field(
        default=None, ge=1, le=4096, description="growth horizon in place of the policy's"
    )
    gate_margin: float | None = Field(
        default=None, gt=0.0, le=4.0, description="fixed factor on growth; by default it is tuned to each engine"
    )
    preemption: bool = Field(
        default=False, description="let waiting requests preempt running ones at a price; off because it did not pay"
    )
    preemption_hysteresis: float = Field(
        default=0.9,
        ge=0.0,
        lt=1.0,
        description="share by which a waiting request's index must be lower than that of the request that it preempts",
    )
    preemption_rest_steps: int = Field(
        default=20, ge=0, le=100_000, description="engine steps after such a preemption in which there is no other"
    )
    overtaking: float | None = Field(
        default=None,
        gt=0.0,
        le=1e6,
        description="mean times from arrival to end by which an answer of half the cost may overtake an older one, "
        "in place of the objective's (mean 140, balanced 30, tail 0.7)",
    )


class ServiceClassSection(Section):
    """One service class: targets, and which requests are in it."""

    ttft_s: float | None = Field(default=None, gt=0.0, le=86_400.0, description="longest time to first token")
    tpot_s: float | None = Field(
        default=None, gt=0.0, le=86_400.0, description="longest mean time per output token after the first"
    )
    e2e_s: float | None = Field(default=None, gt=0.0, le=86_400.0, description="longest time from arrival to the end")
    objective: float = Field(
        default=0.99, gt=0.0, lt=1.0, description="share of the requests that is to meet all targets"
    )
    aliases: tuple[str, ...] = Field(default=(), description="other names that requests may give, as a service_tier")
    tenants: tuple[str, ...] = Field(default=(), description="tenants whose requests are in the class")
    models: tuple[str, ...] = Field(default=(), description="models or LoRA adapters whose requests are in the class")
    priorities: tuple[int, ...] = Field(default=(), description="priorities whose requests are in the class")


class TenantsSection(Section):
    """How tenants share an engine."""

    fair: bool = Field(
        default=False, description="share each engine among tenants by weight; false orders by cost alone"
    )
    default_weight: float = Field(
        default=1.0, ge=LEAST_WEIGHT, le=1e6, description="weight of tenants that are not listed"
    )
    weights: dict[str, Annotated[float, Field(ge=LEAST_WEIGHT, le=1e6, description="weight of that tenant")]] = Field(
        default_factory=dict, description="weights by tenant, as a table [tenants.weights]"
    )


class StoreSection(Section):
    """Where history is kept, and for how long."""

    path: Path = Field(default_factory=default_store_path, description="folder of the history")
    seal_interval_s: float = Field(
        default=5.0, gt=0.0, le=3600.0, description="how often history becomes visible to SQL"
    )
    prompts: bool = Field(default=False, description="keep prompt token ids; off because prompts may be confidential")
    retention_days: float = Field(default=30.0, gt=0.0, le=36_500.0, description="history older than this is removed")
    retention_gb: float = Field(
        default=20.0, gt=0.0, le=1e6, description="the oldest history beyond this size is removed"
    )


class HttpSection(Section):
    """Where the API is served, and its token."""

    host: str = Field(default="127.0.0.1", description="address to listen on; any other than loopback needs a token")
    port: int = Field(default=8700, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    token: SecretStr | None = Field(
        default=None, description="bearer token that every caller must send once it is set; may look and switch"
    )
    read_token: SecretStr | None = Field(
        default=None, description="a second bearer token, which may look but not switch the mode"
    )

    @property
    def credential(self) -> str | None:
        """The token that a client of this configuration sends: the one that may most."""
        return secret(self.token) or secret(self.read_token)

    @field_validator("token", "read_token")
    @classmethod
    def _is_token(cls, given: SecretStr | None) -> SecretStr | None:
        token = secret(given)
        if token is None:
            return None
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("a token holds characters that no HTTP header can: use letters and digits")
        if len(token) < TOKEN_CHARACTERS:
            raise ValueError(
                f"a token is shorter than {TOKEN_CHARACTERS} characters: make one with 'openssl rand -hex 32'"
            )
        return given

    @model_validator(mode="after")
    def _guarded(self) -> HttpSection:
        if self.token is not None and self.token == self.read_token:
            raise ValueError("token and read_token are the same: the read token could switch the mode, make another")
        if not is_loopback(self.host) and not self.credential:
            raise ValueError(
                f"address {self.host!r} can be reached from other machines: set http.token "
                f"({PREFIX}HTTP__TOKEN), or listen on 127.0.0.1"
            )
        return self


class TelemetrySection(Section):
    """OpenTelemetry, off unless asked for."""

    enabled: bool = Field(default=False, description="export a span and measurements of every request over OTLP")
    endpoint: str = Field(default="http://127.0.0.1:4318", description="OTLP collector, over HTTP")

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("must be http://HOST:PORT or https://...: spans go to HOST:PORT/v1/traces")
        return endpoint


class Config(Section):
    """The whole tree."""

    mode: Mode = Field(default="shadow", description="off: FCFS; shadow: decide and record, change nothing; on")
    engine: EngineSection = Field(default_factory=EngineSection)
    learning: LearningSection = Field(default_factory=LearningSection)
    policy: PolicySection = Field(default_factory=PolicySection)
    classes: dict[str, ServiceClassSection] = Field(
        default_factory=dict,
        description="service classes, as tables [classes.NAME] of the file, in order of precedence",
    )
    tenants: TenantsSection = Field(default_factory=TenantsSection)
    store: StoreSection = Field(default_factory=StoreSection)
    http: HttpSection = Field(default_factory=HttpSection)
    telemetry: TelemetrySection = Field(default_factory=TelemetrySection)


def load_config(
    flags: Mapping[str, Any] | None = None, *, file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Config:
    """Build the tree; ``flags`` is nested like it (None means not given). Raises `ConfigError`.

    >>> load_config({"store": {"seal_interval_s": 1}}, environment={"SAGESCHED_MODE": "shadow"}).mode
    'shadow'
    >>> load_config(environment={"SAGESCHED_STORE__PTH": "/x"})
    Traceback (most recent call last):
    store.errors.ConfigError: unknown setting store.pth = '/x' (environment): did you mean store.path?
    """
    layers = {
        "flag": _pruned(flags or {}),
        "environment": _from_environment(os.environ if environment is None else environment),
        "file": _from_file(file) if file else {},
    }
    merged: dict[str, Any] = {}
    for values in reversed(layers.values()):
        _merge(merged, values)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(problem, layers) for problem in error.errors())) from None


def secret(value: SecretStr | None) -> str | None:
    """The text of a secret setting; None if it is not set or empty."""
    return (value.get_secret_value() or None) if value is not None else None


def printed(config: Config) -> list[tuple[str, str]]:
    """Every setting as (key, value), with secrets masked.

    >>> printed(load_config(environment={}))[0]
    ('mode', 'shadow')
    >>> [line for line in printed(load_config({"classes": {"chat": {"ttft_s": 2}}}, environment={})) if "ttft" in line[0]]
    [('classes.chat.ttft_s', '2.0')]
    """
    return list(_lines("", config))


def _lines(prefix: str, tree: Section | Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in tree.items() if isinstance(tree, Mapping) else tree:
        if isinstance(value, Section) or (isinstance(value, Mapping) and value):
            yield from _lines(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", str(value)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in sorted(environment.items()):
        if name.startswith(PREFIX) and not name.startswith(OTHERS) and not _SERVICE_LINK.fullmatch(f"{name}={value}"):
            *sections, key = SHARED.get(name, name).removeprefix(PREFIX).lower().split("__")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
                if not isinstance(node, dict):
                    raise ConfigError(f"environment variable {name}: {section!r} is a setting of its own: unset one")
            node[key] = value
    return tree


def _from_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"configuration file {str(file)!r} cannot be read ({error.strerror}): check --config"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"configuration file {str(file)!r} is not TOML: {reason}") from None


def _pruned(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without values that were not given."""
    pruned = {key: _pruned(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if value is not None and value != {}}


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(problem: ErrorDetails, layers: Mapping[str, Mapping[str, Any]]) -> str:
    """A problem that pydantic found as one line: key, value, origin and remedy."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    origin = next((name for name, tree in layers.items() if _holds(tree, path)), "default")
    given = problem["input"]
    value = (
        "(hidden)" if _SECRET.search(key) else f"section {sorted(given)}" if isinstance(given, dict) else repr(given)
    )
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key} = {value} ({origin}): {_suggestion(path)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and not isinstance(given, str | bool):
        return f"setting {key}: {message}"
    return f"setting {key} = {value} ({origin}): {message[:1].lower()}{message[1:]}"


def _holds(tree: Mapping[str, Any], path: list[str]) -> bool:
    node: Any = tree
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _suggestion(path: list[str]) -> str:
    known = [key for key, _ in described()]
    close = difflib.get_close_matches(".".join(path), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known settings are {', '.join(known)}"


def described() -> list[tuple[str, str]]:
    """Every setting's key and description; ``NAME`` stands for a name of the operator's choice.

    >>> dict(described())["classes.NAME.ttft_s"]
    'longest time to first token'
    """
    return list(_descriptions("", Config))


def meaning(key: str) -> str:
    """The description of a setting as `printed` names it; empty for none.

    >>> meaning("classes.chat.ttft_s"), meaning("tenants.weights.shop")
    ('longest time to first token', 'weight of that tenant')
    """
    known = dict(described())
    parts = key.split(".")
    named = ".".join((*parts[:1], NAMED, *parts[-1:])) if parts[0] == "classes" else f"tenants.weights.{NAMED}"
    return known.get(key) or (known.get(named, "") if len(parts) > 2 else "")


def _descriptions(prefix: str, section: type[Section]) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _descriptions(f"{prefix}{name}.", inner)
            continue
        yield f"{prefix}{name}", field.description or ""
        if get_origin(inner) is dict:
            of = get_args(inner)[1]
            if isinstance(of, type) and issubclass(of, Section):
                yield from _descriptions(f"{prefix}{name}.{NAMED}.", of)
            else:
                yield f"{prefix}{name}.{NAMED}", get_args(of)[1].description or ""
