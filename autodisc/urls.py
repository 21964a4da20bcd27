"""Storage URLs without what they keep secret: no record, report, log or message holds a password.

scheme://user:password@host/name?password=…   ->   scheme://user@host/name

A URL that was written without its password is opened with that of the environment, ``AUTODISC_STORAGE_PASSWORD``;
PostgreSQL's own PGPASSWORD and ~/.pgpass do as well.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

PASSWORD = "AUTODISC_STORAGE_PASSWORD"
# To the last @ of what may be a user and host, so that a password with / or @ in it is no less secret.
_USER = re.compile(r"^([^:/?#\s]+:/{1,2})([^:@/]*):(.*)@", re.DOTALL)
_QUERY = re.compile(r"([?&])[^=&]*(?:password|passwd|passphrase|secret|token)[^=&]*=[^&]*", re.IGNORECASE)


def public(url: str) -> str:
    """``url`` as it may be shown and kept; anything else, such as a journal's path, as it is."""
    shown = _QUERY.sub(r"\1", _USER.sub(r"\1\2@", url)) if ":" in url else url
    return re.sub(r"\?&+", "?", re.sub(r"&{2,}", "&", shown)).rstrip("?&") if shown != url else url


def redacted(text: str, url: str) -> str:
    """Another's message, which may quote ``url`` or parts of it, without what is secret in it."""
    found = _USER.match(url)
    secrets = [found.group(3)] if found else []
    secrets += [part.group(0).partition("=")[2] for part in _QUERY.finditer(url)]
    secrets.append(os.environ.get(PASSWORD, ""))
    text = text.replace(url, public(url))
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def with_password(url: str) -> str:
    """``url`` with the environment's password, where it names a user and has none."""
    password = os.environ.get(PASSWORD)
    if not password or "://" not in url or _USER.match(url):
        return url
    return re.sub(r"^([^:/?#]+://[^:@/]+)@", lambda m: f"{m.group(1)}:{quote(password, safe='')}@", url)
