"""Login at an OpenID Connect provider, a real one of this test's own, by Streamlit's ``st.login``."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

import pytest
import uvicorn
from fastapi import FastAPI, Form
from fastapi.responses import RedirectResponse
from joserfc import jwt
from joserfc.jwk import RSAKey
from playwright.sync_api import Page, expect, sync_playwright

from dashboard.access.sessions import Person, Sessions
from dashboard.access.settings import access_settings
from engine_adapter.serving.processes import free_port
from store.errors import ConfigError

Run: TypeAlias = Callable[..., AbstractContextManager[str]]
DRAWN_MS = 60_000
CLIENT = "sagesched-dashboard"
PEOPLE = {"SAGESCHED_DASHBOARD_LOOK": "*@x.example", "SAGESCHED_DASHBOARD_SWITCH": "Ada@x.example"}


class Provider:
    """An OpenID Connect provider, at which whoever the test names logs in without being asked."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self._key = RSAKey.generate_key(2048, {"kid": "k"})
        self._nonces: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{free_port(0)}"
        self._server = uvicorn.Server(uvicorn.Config(self._api(), port=int(self.url[-5:]), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10.0)

    def _api(self) -> FastAPI:
        api = FastAPI()

        @api.get("/.well-known/openid-configuration")
        def configuration() -> dict[str, Any]:
            places = {name: f"{self.url}/{path}" for name, path in ENDPOINTS.items()}
            return {"issuer": self.url, "id_token_signing_alg_values_supported": ["RS256"], **places}

        @api.get("/keys")
        def keys() -> dict[str, Any]:
            return {"keys": [self._key.as_dict(private=False)]}

        @api.get("/authorize")
        def authorize(redirect_uri: str, state: str, nonce: str) -> RedirectResponse:
            code = f"code-{len(self._nonces)}"
            self._nonces[code] = nonce
            return RedirectResponse(f"{redirect_uri}?{urlencode({'code': code, 'state': state})}", 302)

        @api.post("/token")
        def token(code: str = Form()) -> dict[str, Any]:  # noqa: FAST002 - FastAPI's own form
            now_s = int(time.time())
            said = {"iss": self.url, "aud": CLIENT, "sub": "1", "iat": now_s, "exp": now_s + 600, **self.claims}
            signed = jwt.encode({"alg": "RS256", "kid": "k"}, said | {"nonce": self._nonces.pop(code)}, self._key)
            return {"access_token": "a", "token_type": "Bearer", "id_token": signed, "expires_in": 600}

        return api


ENDPOINTS = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    started = Provider()
    started.start()
    yield started
    started.stop()


@pytest.fixture
def url(standing: Any, recorded: Path, provider: Provider, run_dashboard: Run, tmp_path: Path) -> Iterator[str]:
    """A dashboard whose people log in there."""
    port = free_port(0)
    found = f"http://127.0.0.1:{port}"
    secrets = tmp_path / ".streamlit" / "secrets.toml"
    secrets.parent.mkdir()
    secrets.write_text(
        f'[auth]\nredirect_uri = "{found}/oauth2callback"\ncookie_secret = "{"c" * 40}"\nclient_id = "{CLIENT}"\n'
        f'client_secret = "s"\nserver_metadata_url = "{provider.url}/.well-known/openid-configuration"\n'
    )
    environment = PEOPLE | {"HOME": str(tmp_path)}
    with run_dashboard(standing.url, recorded, environment=environment, port=port) as found:
        yield found


@pytest.fixture
def page() -> Iterator[Page]:
    executable = shutil.which("chromium")
    assert executable is not None, "Chromium is not installed: run 'make browser'"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--headless", "--no-sandbox"])
        found = browser.new_page()
        found.set_default_timeout(DRAWN_MS)
        yield found
        browser.close()


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_people_log_in_at_their_provider(url: str, provider: Provider, page: Page, standing: Any) -> None:
    """Nothing is shown before; afterwards what the address may: nothing, looking, or switching under its name."""
    provider.claims = {"email": "eve@y.example", "email_verified": True}
    page.goto(f"{url}/settings")
    expect(page.get_by_role("button", name="Log in")).to_be_visible(timeout=DRAWN_MS)
    expect(page.get_by_role("heading", name="Settings and health", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("may not look here")).to_be_visible(timeout=DRAWN_MS)
    page.get_by_role("button", name="Log out").click()

    provider.claims = {"email": "ADA@x.example", "email_verified": True}
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text(re.compile(r"Logged in as ada.*: can view and switch modes"))).to_be_visible(
        timeout=DRAWN_MS
    )
    page.goto(f"{url}/settings")
    page.get_by_text("Switch the mode of all engines").click()
    page.get_by_label("Reason").fill("drill")
    page.get_by_label("Reason").press("Tab")
    page.get_by_text("I want all engines").click()
    page.get_by_role("button", name="Switch to off").click()
    expect(page.get_by_text("Requested mode: off")).to_be_visible(timeout=DRAWN_MS)
    assert standing.world.orders == [{"mode": "off", "reason": "drill", "who": "ada@x.example"}]
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible(timeout=DRAWN_MS)
    expect(page).to_have_url(re.compile(re.escape(url)))


@pytest.mark.parametrize(
    ("claims", "person"),
    [
        ({"email": "Ada@X.example", "email_verified": True}, Person("switch", "ada@x.example")),
        ({"email": "bob@x.example", "email_verified": True}, Person("look", "bob@x.example")),
        ({"email": "bob@x.example"}, None),
        ({"email": "bob@x.example", "email_verified": "true"}, None),
        ({"email": "ada@x.example", "email_verified": False}, None),
        ({"email": "bob@sub.x.example", "email_verified": True}, None),
        ({"email": "bob@x.example@evil.example", "email_verified": True}, None),
        ({"email": "*@x.example", "email_verified": True}, Person("look", "*@x.example")),
        ({"email": "mi\u212ae@x.example", "email_verified": True}, None),
        ({"email": "", "email_verified": True}, None),
        ({}, None),
    ],
)
def test_an_address_is_somebody_only_if_it_is_verified_and_named(claims: dict[str, Any], person: Person | None) -> None:
    """By the provider; a token logs nobody in beside it."""
    tokens = {"SAGESCHED_HTTP__TOKEN": "zebra-token-0123456789abcdef"}
    settings = access_settings("127.0.0.1", [], PEOPLE | tokens)
    assert settings.login == "oidc"
    assert Sessions(settings, time.time).known(claims) == person


@pytest.mark.parametrize("people", ["ada", "*", "*@", "a@b@c", "*@*.example"])
def test_people_who_are_none_are_refused_at_the_start(people: str) -> None:
    """An address or a domain, and no pattern that means more than it says."""
    with pytest.raises(ConfigError, match="SAGESCHED_DASHBOARD_LOOK"):
        access_settings("127.0.0.1", [], {"SAGESCHED_DASHBOARD_LOOK": people})
