"""ICE candidates that a peer tells: which of them are checked, and how many.

Whoever sends candidates decides where connectivity checks go, so what is no address of one host is not sent to, and one
peer gets no more than a CandidateQuota of them (RFC 8445 section 19.5.1, RFC 8838 section 19).
"""

import ipaddress
import re
from dataclasses import dataclass, field

from aiortc import RTCIceCandidate

#: Of one peer, in its offer and later together: candidates, and hosts that they are at.
MAX_CANDIDATES, MAX_HOSTS = 32, 16

_MDNS = re.compile(r"[a-z0-9-]+\.local", re.IGNORECASE)
_DOMAIN = re.compile(r"(?=.*[a-z])[a-z0-9_.-]+", re.IGNORECASE)


def is_name(candidate: RTCIceCandidate) -> bool:
    """Whether the candidate has an mDNS name for an address (draft-ietf-mmusic-mdns-ice-candidates)."""
    return _MDNS.fullmatch(candidate.ip) is not None


def read_candidate(value: str) -> RTCIceCandidate | None:
    """The value of an a=candidate line (RFC 8839 section 5.1); None for one that cannot be used here and is no mistake:
    over TCP, for RTCP apart, of an unknown type, at a domain name, or at an address that is not of one host.

    Raises ValueError, with what is wrong with it.
    """
    words = value.split()
    if len(words) < 8 or words[6] != "typ":
        raise ValueError("this is not a candidate")
    foundation, component, protocol, priority, host, port, _, kind = words[:8]
    if not all(re.fullmatch("[0-9]{1,10}", number) for number in (component, priority, port)):
        raise ValueError("component, priority and port of a candidate are whole numbers")
    udp = protocol.lower() == "udp"
    if int(port) > 65535 or (udp and port.strip("0") == ""):
        raise ValueError(f"there is no port {int(port)} for a candidate: it is from 1 to 65535")
    if _MDNS.fullmatch(host) is None:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if _DOMAIN.fullmatch(host) is None:
                raise ValueError("this is not the address of a candidate") from None
            return None  # RFC 8839 lets domain names be ignored
        if address.is_unspecified:
            raise ValueError(f"there is nobody at {address}, the address of a candidate")
        if not _is_host(address):
            return None
        host = str(address)
    if not udp or int(component) != 1 or kind not in ("host", "srflx", "relay"):
        return None
    return RTCIceCandidate(1, foundation, host, int(port), int(priority), "udp", kind)


def _is_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it can be the address of one host. The broadcast address of a network looks like that of a host; systems
    refuse to send there on a socket without SO_BROADCAST, as aioice's are."""
    if address.version == 6:
        return not (address.is_multicast or address.ipv4_mapped or address.scope_id)
    return not (address.is_multicast or address.is_reserved or address in ipaddress.ip_network("0.0.0.0/8"))


@dataclass
class CandidateQuota:
    """What is left for one peer to have checked. left: candidates; hosts: addresses and names that it told."""

    left: int = MAX_CANDIDATES
    hosts: set[str] = field(default_factory=set)

    def admits(self, candidate: RTCIceCandidate) -> bool:
        """Take a candidate off, if there is something left for it."""
        if self.left == 0 or (candidate.ip not in self.hosts and len(self.hosts) == MAX_HOSTS):
            return False
        self.left -= 1
        self.hosts.add(candidate.ip)
        return True
