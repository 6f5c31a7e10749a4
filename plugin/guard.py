"""Who may talk to the server: token, origins and hosts, and what every answer says about how to treat it.

- With a token, every route but the page's own files needs it: `Authorization: Bearer TOKEN` (RFC 6750). Where a browser
  can set no header, on a WebSocket, `?token=` does. The page's files hold nothing; the page asks for the token.
- A browser tells which page a request comes from. Pages of other origins are refused, unless they are listed, and those
  get CORS headers. A cookie is never set, so no page can borrow somebody's rights.
- Without a token the server is on loopback, where a page of the web could still reach it under a name that it points
  there (DNS rebinding): so only names of this machine are answered.
"""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, hdrs, web

from plugin.connections import EXHAUSTED, UNREADABLE

#: What other origins may send and read.
_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
_REQUEST_HEADERS = "Authorization, Content-Type, If-Match"
_RESPONSE_HEADERS = "Location, Link, ETag, Retry-After, Accept-Post, Accept-Patch"
_PREFLIGHT_SECONDS = "600"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guard:
    """token: "" for none. origins: of other pages that may use the server, in lower case. public: routes that
    need no token, as aiohttp writes them ("/sessions/{id}/")."""

    token: str = ""
    origins: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes the same time for every wrong one of a length."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())

    def admits(self, request: web.Request) -> bool:
        """Whether a request may come in, as far as the token goes."""
        resource = request.match_info.route.resource
        if not self.token or (resource is not None and resource.canonical in self.public):
            return True
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() == "bearer":
            return self.knows(given.strip())
        # a query ends up in logs and histories of others, so only where there is no other way
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            return self.knows(request.query.get("token", ""))
        return False

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this machine, or where a proxy shows it; all do where a token protects."""
        if self.token or not host:  # a browser always sends it
            return True
        if host.lower() in {origin.partition("://")[2] for origin in self.origins}:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask: our own, or one that is listed."""
        return origin.lower() in self.origins or origin.lower().partition("://")[2] == host.lower() != ""

    def check(self, request: web.Request) -> None:
        """Raises the refusal of what may not be, in one line."""
        host, origin = request.headers.get(hdrs.HOST, ""), request.headers.get(hdrs.ORIGIN)
        if not self.allows_host(host):
            raise web.HTTPMisdirectedRequest(
                text="this host name is not this machine's; use 127.0.0.1 or localhost, set a token, or, behind a "
                "proxy, list its address in server.origins"
            )
        if origin is not None and not self.allows_origin(origin, host):
            raise web.HTTPForbidden(text="pages of this origin may not use this server; list it in server.origins")
        if self.is_preflight(request):  # it never carries a token
            return
        if not self.admits(request):
            raise web.HTTPUnauthorized(
                text="a token is needed: Authorization: Bearer TOKEN",
                headers={hdrs.WWW_AUTHENTICATE: 'Bearer realm="ifmdm"'},
            )
        # a few bytes may become gigabytes, which whoever sends them need not have
        if _codings(request, hdrs.CONTENT_ENCODING) - {"identity"}:
            raise web.HTTPUnsupportedMediaType(
                text="send the body as it is, without Content-Encoding", headers={hdrs.ACCEPT_ENCODING: "identity"}
            )
        if _codings(request, hdrs.TRANSFER_ENCODING) - {"chunked"}:
            raise web.HTTPBadRequest(text="the one Transfer-Encoding that is taken is chunked")

    def is_preflight(self, request: web.Request) -> bool:
        """Whether a browser asks what a page of another origin may send."""
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return asks and hdrs.ORIGIN in request.headers

    def middleware(self) -> Callable:
        """Refuses what may not be. Around everything, unknown paths too."""

        @web.middleware
        async def check(request: web.Request, handler: Callable) -> web.StreamResponse:
            self.check(request)
            return web.Response(status=204) if self.is_preflight(request) else await handler(request)

        return check

    async def expect(self, request: web.Request) -> None:
        """The answer to `Expect: 100-continue`, which aiohttp would give before anybody asked for the token. Raises the
        refusal."""
        self.check(request)
        if request.version < HttpVersion11:
            return
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            raise web.HTTPExpectationFailed(text="the one Expect that is known is 100-continue")
        if not request.content.is_eof():
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself is still to come

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """For on_response_prepare: what every answer says."""
        headers = response.headers
        headers[hdrs.SERVER] = "ifmdm"
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(self), display-capture=()"
        # embedding is for the origins that may use the server anyway
        headers["Content-Security-Policy"] = "; ".join(
            [
                "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
                "img-src 'self' blob:", "media-src 'self' blob: mediastream:", "base-uri 'none'", "form-action 'none'",
                " ".join(["frame-ancestors 'self'", *sorted(self.origins)]),
            ]
        )  # fmt: skip
        origin = request.headers.get(hdrs.ORIGIN, "")
        if self.origins:
            headers.add(hdrs.VARY, hdrs.ORIGIN)
        if origin.lower() in self.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _RESPONSE_HEADERS
            if request.method == "OPTIONS":
                headers["Access-Control-Allow-Methods"] = _METHODS
                headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
                headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS


def _codings(request: web.Request, name: str) -> set[str]:
    """What a header lists, in lower case."""
    return {each.strip().lower() for line in request.headers.getall(name, []) for each in line.split(",")} - {""}


@web.middleware
async def plain_errors(request: web.Request, handler: Callable) -> web.StreamResponse:
    """Whatever goes wrong is one line of text for who asked, and ours is in the log."""
    await asyncio.sleep(0)  # many requests at once on one connection take turns with everything else
    try:
        return await handler(request)
    except web.HTTPException:
        raise  # one line of text already
    except UNREADABLE:
        raise web.HTTPBadRequest(text="the body cannot be read") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise web.HTTPServiceUnavailable(text=f"{error.strerror.lower()}; try again later") from None
        # of a body whose connection is cut, aiohttp says the second
        of_theirs = ConnectionError if request.content.is_eof() else (ConnectionError, RuntimeError)
        if isinstance(error, of_theirs) and (request.transport is None or request.transport.is_closing()):
            raise ConnectionResetError from None  # nobody is there to be told
        _log.exception("a request failed", extra={"method": request.method, "path": request.path})
        return web.Response(status=500, text="an error of ifmdm; its log has more")
