"""How a pull follows redirects: as a browser does not, a query stays a query, and no password goes to another host."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from typing import IO


class Redirects(urllib.request.HTTPRedirectHandler):
    """Of urllib's, but that a request is sent again as it was, a POST too: what a pull posts changes nothing there. The
    standard library makes a GET of it for 301, and gives up at 307 and 308."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if code not in (301, 302, 307, 308):  # 303: the answer to a POST is elsewhere, which no service of ours says
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        again = urllib.request.Request(newurl, data=req.data, headers=dict(req.headers), method=req.get_method())
        if _origin(newurl) == _origin(req.full_url):
            for name, value in req.unredirected_hdrs.items():
                if name == "Authorization":
                    again.add_unredirected_header(name, value)
        return again


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc
