"""One request, to a server on a list, over https; redirects are checked before they are followed."""

from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests

from gpt2_from_scratch.errors import DownloadError

MOST_REDIRECTS = 5


@dataclass(frozen=True)
class Manners:
    """Which servers are asked, and how patiently."""

    allowed: tuple[str, ...] = (
        "https://openaipublic.blob.core.windows.net",
        "https://f001.backblazeb2.com",
        "https://archive.ics.uci.edu",
    )
    timeouts: tuple[float, float] = (10, 60)  # seconds to connect, seconds of silence
    attempts: int = 4  # at one address, without progress
    pause: float = 1.0  # seconds before the second attempt, doubled each time


POLITE = Manners()


def open_url(url: str, headers: dict[str, str], manners: Manners) -> requests.Response:
    """The server's answer, after redirects; each address is checked before it is asked."""
    for _ in range(MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        if f"{parts.scheme}://{parts.netloc}" not in manners.allowed:
            raise DownloadError(f"{url} is on none of the servers {', '.join(manners.allowed)}")
        try:
            response = _ask(url, headers, manners)
            if not response.is_redirect:
                return response
            response.close()  # its body is not read, however long
            url = urljoin(url, response.headers["Location"])
        except ValueError as error:
            raise DownloadError(f"{url} redirects to no address: {error}") from None
        except requests.RequestException:
            raise
        except OSError as error:  # $REQUESTS_CA_BUNDLE names no file
            raise DownloadError(str(error)) from None
    raise DownloadError(f"more than {MOST_REDIRECTS} redirects")


def _ask(url: str, headers: dict[str, str], manners: Manners) -> requests.Response:
    """The answer of one server, of which the body is not read yet."""
    with requests.Session() as session:
        request = session.prepare_request(requests.Request("GET", url, headers=headers))
        settings = session.merge_environment_settings(url, {}, True, None, None)  # proxies, CAs
        # not through session.send, which reads a redirect's body even when it does not follow
        adapter = session.get_adapter(url)
        return adapter.send(request, timeout=manners.timeouts, **settings)


def continues(response: requests.Response, size: int | None, done: int) -> bool:
    """Is this the rest of a file of this size from byte `done` on?"""
    span, _, total = response.headers.get("Content-Range", "").partition("/")
    right_total = size is None or total in ("*", str(size))
    return span.startswith(f"bytes {done}-") and right_total and not encoded(response)


def encoded(response: requests.Response) -> bool:
    """Is it compressed, though that was not asked for? Then its lengths are not the file's."""
    return response.headers.get("Content-Encoding", "identity") != "identity"


def version(response: requests.Response) -> str:
    """What If-Range takes to name this version of the file; empty if the server names none."""
    if encoded(response):
        return ""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
