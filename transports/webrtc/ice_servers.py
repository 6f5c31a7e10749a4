"""STUN and TURN servers, as settings name them: URIs of RFC 7064 and RFC 7065, and beside them the user and password of
the TURN servers, which those URIs have no place for."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transports.media import TransportError

#: What an address may be, for refusals.
FORMS = "stun:HOST:PORT, turn:HOST:PORT, turn:HOST:PORT?transport=tcp or turns:HOST:PORT"
#: Longer than that no server takes a user name (RFC 8489 section 14.3); nobody needs a longer password.
MAX_BYTES = 508

_URI = re.compile(
    r"(?P<scheme>stun|turn|turns):(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:\?transport=(?P<transport>udp|tcp))?"
)
_PORTS = {"stun": 3478, "turn": 3478, "turns": 5349}


@dataclass(frozen=True)
class IceServer:
    """url: as in the settings; scheme: stun, turn or turns; host: a name or an address, without brackets; transport:
    "udp" or "tcp"; username, password: of a TURN server, "" for STUN."""

    url: str
    scheme: str
    host: str
    port: int
    transport: str
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def is_turn(self) -> bool:
        return self.scheme != "stun"

    @property
    def is_ipv6(self) -> bool:
        """Whether it is named by an IPv6 address."""
        return ":" in self.host


def read_ice_server(url: str) -> IceServer:
    """Raises TransportError, without what could be a password."""
    if "@" in url:
        raise TransportError(
            "ICE servers: a user and a password do not go into the address: give turn:HOST:PORT, and turn_username and "
            "turn_password beside it"
        )
    found = _URI.fullmatch(url)
    port = int(found["port"]) if found and found["port"] else 0
    if found is None or (found["port"] and not 1 <= port <= 65535) or not _is_host(found["host"]):
        raise TransportError(f"ICE server {url!r}: give {FORMS}")
    scheme, transport = found["scheme"], found["transport"]
    if scheme == "stun" and transport:
        raise TransportError(f"ICE server {url!r}: the address of a STUN server has no ?transport=")
    if scheme == "turns" and transport == "udp":
        raise TransportError(f"ICE server {url!r}: turns is TLS over TCP: leave ?transport=udp out")
    usual = "tcp" if scheme == "turns" else "udp"
    return IceServer(url, scheme, found["host"].strip("[]"), port or _PORTS[scheme], transport or usual)


def _is_host(host: str) -> bool:
    """Whether what looks like an address is one."""
    if not host.startswith("[") and not re.fullmatch("[0-9.]+", host):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def ice_servers(urls: Sequence[str], username: str = "", password: str = "") -> list[IceServer]:
    """The servers of these addresses; username, password: for each TURN server among them. Raises TransportError."""
    servers = [read_ice_server(url) for url in urls]
    for name, value in (("turn_username", username), ("turn_password", password)):
        if not value.isprintable() or len(value.encode(errors="replace")) > MAX_BYTES:
            raise TransportError(f"{name}: it is longer than {MAX_BYTES} bytes, or has characters that cannot be sent")
    turn = [server for server in servers if server.is_turn]
    if turn and not (username and password):
        raise TransportError(f"ICE server {turn[0].url!r}: a TURN server needs turn_username and turn_password")
    if not turn and (username or password):
        raise TransportError(
            "turn_username and turn_password: there is no TURN server among ice_servers to use them at"
        )
    return [
        replace(each, username=username, password=password) if each.is_turn else each for each in servers
    ]


def link(server: IceServer) -> str:
    """A Link header value that tells a client the server (RFC 9725 section 4.6)."""
    parts = [f"<{server.url}>", 'rel="ice-server"']
    if server.is_turn:
        parts += [f"username={_quoted(server.username)}", f"credential={_quoted(server.password)}"]
        parts.append('credential-type="password"')
    return "; ".join(parts)


def _quoted(text: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'
