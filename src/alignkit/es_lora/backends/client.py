"""Requests to a server, with errors in words."""

import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter

MAX_REQUESTS = 256
"""Under way at once. Servers batch about as many rows; those beyond wait here instead of there."""

_POLL_S = 0.25


class BackendError(RuntimeError):
    """The server cannot be reached, refuses, is late, or answers what it should not."""


class ServerLostError(BackendError):
    """The connection broke, or the server does not know an adapter that it had loaded: it may have been restarted."""


class ServerClient:
    """Args:
    server (`str`): its name, for errors.
    url (`str`): without a path.
    timeout_s (`float`): deadline of each request, and for the server to be ready.
    start (`str`): command that starts such a server, for errors.
    """

    def __init__(self, server: str, url: str, timeout_s: float, start: str):
        self._where = f"{server} at {url}"
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._start = start
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_REQUESTS))

    def wait_until_ready(self) -> None:
        """Return as soon as `/health` answers 200.

        Raises:
            BackendError: it does not within the deadline.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                status = self._session.get(f"{self._url}/health", timeout=self._timeout_s).status_code
                if status == requests.codes.ok:
                    return
                reason = f"/health answers {status}"
            except (requests.ConnectionError, requests.Timeout) as error:
                reason = str(error)
            if time.monotonic() >= deadline:
                raise BackendError(
                    f"{self._where} cannot be reached within {self._timeout_s} s: {reason}. Correct backend_url, "
                    f"raise backend_timeout_s, or start a server: {self._start}"
                )
            time.sleep(_POLL_S)

    def model(self) -> str:
        """Name under which the server serves its base model."""
        try:
            answer = self._session.get(f"{self._url}/v1/models", timeout=self._timeout_s)
            return answer.json()["data"][0]["id"]
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            raise BackendError(f"{self._where} does not say what it serves at /v1/models: {error}") from error

    def load(self, route: str, name: str, folder: str) -> None:
        """Load an adapter.

        Raises:
            ServerLostError: the connection broke.
            BackendError: it is refused, or late.
        """
        answer = self._post(route, {"lora_name": name, "lora_path": folder})
        if answer.status_code != requests.codes.ok:
            raise BackendError(
                f"{self._where} refuses to load an adapter: {route} answers {answer.status_code} "
                f"{answer.text!r:.800}. It must read {folder}, and be started like this: {self._start}. It may hold "
                "fewer adapters than population_chunk_size asks for, and that is all members by default"
            )

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """The JSON of an answer, or its text.

        Raises:
            ServerLostError: the connection broke, or an adapter is unknown.
            BackendError: another status than 200, or late.
        """
        answer = self._post(route, body)
        if answer.status_code != requests.codes.ok:
            unknown = ("does not exist", "cannot be found", "not loaded", "never been loaded")
            kind = ServerLostError if any(words in answer.text for words in unknown) else BackendError
            raise kind(f"{self._where}: {route} answers {answer.status_code} {answer.text!r:.800}")
        try:
            return answer.json()
        except requests.JSONDecodeError:
            return answer.text

    def _post(self, route: str, body: dict[str, Any]) -> requests.Response:
        try:
            return self._session.post(f"{self._url}{route}", json=body, timeout=self._timeout_s)
        except requests.Timeout as error:
            raise BackendError(
                f"{self._where} has not answered {route} within {self._timeout_s} s; raise backend_timeout_s, lower "
                "population_chunk_size, or look at the server's log"
            ) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise ServerLostError(f"{self._where} broke the connection at {route}: {error}") from error
