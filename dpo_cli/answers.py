"""The hub's client with bounds: huggingface_hub itself waits for an answer for ever, and reads one that never ends."""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from dpo_cli.errors import StorageError

SECONDS = 300.0
"""From the last byte sent to the last byte of the answer, redirects included."""
_MOST_BYTES = 64 * 2**20
"""Of an answer: the hub's are lists of names."""
_SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def bounded_answers() -> Iterator[None]:
    """Inside, huggingface_hub's requests raise a StorageError where an answer does not end.

    Uploading itself may take as long as it does, as long as bytes are taken.
    """
    set_client_factory(_client)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _client() -> Any:
    client = default_client_factory()
    plain = client.send

    def send(request: Any, *, stream: bool = False, **options: Any) -> Any:
        return _Request(request, plain, options).answer(read=not stream)

    client.send = send  # type: ignore[method-assign]
    return client


class _Request:
    """One request, made in a thread that is left alone with it if it does not end."""

    def __init__(self, request: Any, send: Callable[..., Any], options: dict[str, Any]) -> None:
        self._request = request
        self._send = send
        self._options = options
        self._active = time.monotonic()
        """When bytes were last sent."""
        self._response: Any = None

    def answer(self, *, read: bool) -> Any:
        """
        Args:
            read: all of it.

        Raises:
            StorageError: naming the server and the bound.
        """
        self._request.stream = self._watched(self._request.stream)
        done: Future[Any] = Future()
        threading.Thread(target=self._run, args=(done, read), daemon=True).start()
        while not wait([done], timeout=_SECONDS_BETWEEN_LOOKS).done:
            self._check_ends()
        response = done.result()
        self._check_not_put_off(response)
        return response

    def _run(self, done: Future[Any], read: bool) -> None:
        try:
            self._response = self._send(self._request, stream=True, **self._options)
            if read:
                self._response.read()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(self._response)

    def _check_ends(self) -> None:
        if self._response is not None and self._response.num_bytes_downloaded > _MOST_BYTES:
            self._give_up(f"has answered with more than {_MOST_BYTES:,} bytes")
        if time.monotonic() - self._active > SECONDS:
            self._give_up(f"has not answered in {SECONDS:.0f} s")

    def _check_not_put_off(self, response: Any) -> None:
        """A server that is busy may want to be asked again, and huggingface_hub waits as long as it is told to."""
        if response.status_code not in (429, 503):
            return
        said = [
            response.headers.get("retry-after", ""),
            *re.findall(r"\bt\s*=\s*\d+", response.headers.get("ratelimit", "")),
        ]
        seconds = max((int(number) for text in said for number in re.findall(r"\d{1,18}$", text)), default=0)
        if seconds > SECONDS:
            self._give_up(f"is busy, and wants to be asked again in {seconds} s ({response.status_code})")

    def _give_up(self, why: str) -> NoReturn:
        if self._response is not None:
            with suppress(Exception):  # it may be in the middle of something
                self._response.close()
        url = self._request.url
        raise StorageError(
            f"push: {url.scheme}://{url.netloc.decode('ascii')} {why}: look at HF_ENDPOINT, and at the proxy; the same "
            "command tries again"
        )

    def _watched(self, stream: Any) -> Any:
        """What is sent, noting when."""
        library = importlib.import_module(type(self._request).__module__.partition(".")[0])  # httpx, or what follows it
        request = self

        class Watched(library.SyncByteStream):  # type: ignore[name-defined]
            def __iter__(self) -> Iterator[bytes]:
                for chunk in stream:
                    request._active = time.monotonic()
                    yield chunk
                request._active = time.monotonic()

            def close(self) -> None:
                stream.close()

        return Watched()
