"""Ask a server over HTTP, briefly."""

import email.utils
import http.client
import time
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


class NoAnswerError(Exception):
    """No server answers there; the message says why."""


def ask(url: str) -> tuple[int, float | None]:
    """Return the status of a server's answer, and by how many seconds its clock is ahead of this machine's, if it says.

    Raises:
        NoAnswerError: It did not answer within `TIMEOUT_S`, or not as a web server does.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            status, date = response.status, response.headers["Date"]
    except urllib.error.HTTPError as error:
        status, date = error.code, error.headers["Date"]
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoAnswerError(str(getattr(error, "reason", error))) from error
    try:
        return status, email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):  # no date, or none that can be read
        return status, None


def clock_of(url: str) -> float | None:
    """Return by how many seconds a server's clock is ahead of this machine's; None if that cannot be told."""
    try:
        return ask(url)[1]
    except NoAnswerError:
        return None
