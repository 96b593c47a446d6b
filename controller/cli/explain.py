"""`explain`: one request in sentences, from the running controller or from the history alone."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

import msgspec

from controller.api.client import ApiClient
from controller.cli.output import say
from controller.config import Config
from controller.explain.explanation import explain
from controller.explain.lookup import recorded_timeline
from store.bounds import bounded_request_id
from store.errors import SageError
from store.formatting import printable_json
from store.http_requests import ExplainView


def run_explain(request_id: str, config: Config, *, api: str | None, store: Path | None, as_json: bool) -> None:
    """Write the explanation; raises `BadInputError` for an unknown request.

    A given ``api`` or ``store`` is the only source; otherwise the configured controller is asked, then its history read.
    """
    answer = _answer(request_id, config, api, store)
    if as_json:
        sys.stdout.write(printable_json(msgspec.json.encode(answer).decode()) + "\n")
        return
    explanation = answer.explanation or explain(answer.facts)
    say(f"Request {explanation.request_id} ({explanation.state})")
    for sentence in explanation.sentences:
        say(f"- {sentence.text}")


def _answer(request_id: str, config: Config, api: str | None, store: Path | None) -> ExplainView:
    if store is not None and api is None:
        return _from_history(request_id, store)
    try:
        return _from_controller(request_id, config, api)
    except SageError:
        if api is not None:
            raise
    return _from_history(request_id, config.store.path)


def _from_controller(request_id: str, config: Config, api: str | None) -> ExplainView:
    client = ApiClient(api or f"http://127.0.0.1:{config.http.port}", token=config.http.credential)
    try:
        return msgspec.convert(
            client.get(f"/api/explain/{quote(bounded_request_id(request_id), safe='')}"), ExplainView
        )
    except msgspec.ValidationError as error:
        raise SageError(f"{client.base_url} gives an answer of another form ({error}): run the same release") from None
    finally:
        client.close()


def _from_history(request_id: str, store: Path) -> ExplainView:
    timeline = recorded_timeline(store, request_id)
    return ExplainView(timeline, explain(timeline))
