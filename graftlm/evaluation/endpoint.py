"""Questions to a model behind any OpenAI-compatible endpoint: many at once, tried again where that may help.

Nothing but the question, the name of the model and the key is sent, and to that address alone: redirects are not
followed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from graftlm.errors import UserError

if TYPE_CHECKING:
    import httpx2

KEY = "GRAFTLM_JUDGE_KEY"
MAX_TOKENS = 1024  # of an answer
PATIENCE = 300.0  # seconds: an endpoint that asks for a longer pause ends the run
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": None}  # where an endpoint refuses the first
Ask = Callable[[str], str]


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers. ``url``: up to /v1, or the whole address of its chat completions.

    ``timeout``: seconds for an answer; ``tries``: of one question; ``pause``: seconds before the second, then doubled.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 6
    pause: float = 1.0
    at_once: int = 8

    @property
    def address(self) -> httpx2.URL:
        """Of its chat completions.

        Raises:
            UserError: it is no address, or has a password in it.
        """
        import httpx2

        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise UserError(f"--judge {self.url}: is no address: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"--judge {self.url}: is no address", hint="For example: --judge http://localhost:8000/v1")
        if url.userinfo:
            raise UserError("--judge: the address holds a password", hint=f"Put a key into {KEY} instead.")
        path = url.path.rstrip("/")
        return url if path.endswith("/chat/completions") else url.copy_with(path=f"{path}/chat/completions")

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        return str(self.address.copy_with(query=None))


def ask_all(endpoint: Endpoint, questions: Sequence[str], answered: Callable[[int, str], None]) -> None:
    """Ask all questions; ``answered`` gets the number (from 0) and answer of each as it comes, in a thread of its own.

    Raises:
        UserError: the endpoint refuses, or does not answer however often it is asked. What was answered stays.
    """
    import httpx2

    headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
    stop = threading.Event()
    # Whoever waits for a connection must not be told that it took too long.
    limits = httpx2.Timeout(endpoint.timeout, pool=None)
    with httpx2.Client(timeout=limits, headers=headers) as client:
        asker = _Asker(endpoint, client, stop)

        def work(number: int) -> None:
            try:
                if not stop.is_set():
                    answered(number, asker.ask(questions[number]))
            except BaseException:
                stop.set()  # here, before this thread takes the next question
                raise

        with ThreadPoolExecutor(endpoint.at_once) as pool:
            futures = [pool.submit(work, number) for number in range(len(questions))]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        failures = [error for future in done if (error := future.exception()) is not None]
        for error in sorted(failures, key=lambda each: isinstance(each, _Stopped)):
            raise error


class _Stopped(Exception):
    """Another question failed."""


class _Asker:
    """Asks one question after another, in any thread."""

    def __init__(self, endpoint: Endpoint, client: httpx2.Client, stop: threading.Event) -> None:
        self.endpoint, self.client, self.stop = endpoint, client, stop
        self.settings: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS}

    def ask(self, question: str) -> str:
        import httpx2

        endpoint, failed = self.endpoint, 0
        while True:
            pause = endpoint.pause * 2**failed
            sent = dict(self.settings)
            hint: str | None
            body = {"model": endpoint.model, "messages": [{"role": "user", "content": question}], **sent}
            try:
                response = self.client.post(endpoint.address, json=body)
                if response.status_code == 200:
                    if (text := _content(response)) is not None:
                        return text
                    what, hint = (
                        f"answered with no chat completion: {self._excerpt(response)}",
                        "Is it the right address?",
                    )
                elif response.status_code == 400 and self._adapted(response, sent):
                    continue
                else:
                    what, hint = self._refusal(response)
                    if response.status_code not in _AGAIN:
                        raise self._problem(what, hint)
                    pause = max(pause, _retry_after(response))
            except httpx2.TimeoutException:
                what, hint = (
                    f"gave no answer within {endpoint.timeout:g} s",
                    "Is it overloaded? The same command goes on later from what was judged.",
                )
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                what, hint = (
                    f"cannot be reached: {error or type(error).__name__}",
                    "Is it running, and the address right?",
                )
            failed += 1
            if failed >= endpoint.tries or pause > PATIENCE:
                raise self._problem(f"{what} (asked {failed} time{'s' * (failed > 1)})", hint)
            if self.stop.wait(pause * random.uniform(1.0, 1.25)):  # not all at the same moment
                raise _Stopped

    def _adapted(self, response: httpx2.Response, sent: dict[str, Any]) -> bool:
        """Leave out, or call otherwise, a setting that the endpoint does not know; False where it means another."""
        for name, other in _OTHERWISE.items():
            if name in sent and name in response.text:
                value = self.settings.pop(name, None)
                if other is not None and value is not None:
                    self.settings[other] = value
                return True
        return False

    def _refusal(self, response: httpx2.Response) -> tuple[str, str | None]:
        code = response.status_code
        name = response.reason_phrase or "no reason given"
        hints = {
            401: f"Is the right key in the environment variable {KEY}?",
            403: f"Is the right key in the environment variable {KEY}?",
            404: f"Is there a model '{self.endpoint.model}', and is the address right? It mostly ends in /v1.",
            429: "It allows no more for now: the same command goes on later from what was judged.",
        }
        return f"answered {code} ({name}): {self._excerpt(response)}", hints.get(code)

    def _problem(self, what: str, hint: str | None) -> UserError:
        return UserError(f"the judge at {self.endpoint.shown} {what}", hint=hint)

    def _excerpt(self, response: httpx2.Response) -> str:
        """What the endpoint says, without the key, which some repeat."""
        text = response.text
        try:
            error = response.json()["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            pass
        if self.endpoint.key:
            text = text.replace(self.endpoint.key, "…")
        return " ".join(text.split())[:200] or "nothing"


def _content(response: httpx2.Response) -> str | None:
    """The text of a chat completion, empty where the model said nothing; None where it is none."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    if content is None:
        return ""
    return content if isinstance(content, str) else None


def _retry_after(response: httpx2.Response) -> float:
    """The seconds that the endpoint asks to wait; 0 where it says nothing of it."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
