"""The text of a session description (RFC 8866), cut into its m= sections, and a section written in the one form that
aiortc reads.

aiortc's parser is made for what it writes itself: it forgets what it has no word for, such as a=rtcp-mux without a=rtcp
and a direction at session level, and fails on much that is common. So it only ever gets what is written here, line by
line, from what was understood.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from aiortc.rtp import DYNAMIC_PAYLOAD_TYPES
from aiortc.sdp import FMTP_INT_PARAMETERS

from transports.webrtc.refusals import Refusal

DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
#: What holds for every section that has none of its own, where it stands at session level: ICE and DTLS (RFC 8839
#: section 5, RFC 8842 section 5), a direction (RFC 8866 section 6.7), header extensions (RFC 8285 section 5).
_SHARED = ("ice-ufrag", "ice-pwd", "fingerprint", "setup", "rtcp-mux", "extmap")
#: Formats that need no a=rtpmap (RFC 3551 section 6), of those that aiortc has.
_STATIC = {0: "PCMU/8000", 8: "PCMA/8000", 9: "G722/8000"}
_SHOWN = 60


class Attribute(NamedTuple):
    """a=name:value; number: of its line, from 1."""

    name: str
    value: str
    number: int


@dataclass(frozen=True)
class Section:
    """One m= section, with what the session level says for it. number: of its first line, from 1; port, profile,
    formats: as its m= line says."""

    kind: str
    port: int
    profile: str
    formats: tuple[str, ...]
    number: int
    attributes: tuple[Attribute, ...] = ()

    def values(self, name: str) -> list[str]:
        return [each.value for each in self.attributes if each.name == name]

    def value(self, name: str) -> str:
        """The first value of an attribute; "" if there is none."""
        return next(iter(self.values(name)), "")

    def has(self, *names: str) -> bool:
        return any(each.name in names for each in self.attributes)

    @property
    def direction(self) -> str:
        """sendrecv if nothing is said (RFC 8866 section 6.7)."""
        return next((each.name for each in self.attributes if each.name in DIRECTIONS), "sendrecv")


@dataclass(frozen=True)
class Description:
    """attributes: those of the session level."""

    attributes: tuple[Attribute, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Transport:
    """How ICE and DTLS reach the peer of a section. setup: the DTLS role that it offers; mux: RTP and RTCP share it."""

    ufrag: str = ""
    password: str = ""
    fingerprints: tuple[str, ...] = ()
    setup: str = ""
    mux: bool = False

    def filled(self, other: "Transport") -> "Transport":
        """This one, with the other's for what is missing."""
        ice = self if self.ufrag and self.password else other
        return Transport(
            ice.ufrag,
            ice.password,
            self.fingerprints or other.fingerprints,
            self.setup or other.setup,
            self.mux or other.mux,
        )


def unreadable(number: int, line: str, why: str = "") -> Refusal:
    """The refusal of a line that cannot be read."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in line[:_SHOWN])
    return Refusal(400, f"this is not SDP that can be read: line {number}, {shown!r}{why and ': '}{why}")


def read_description(text: str) -> Description:
    """Raises Refusal (400)."""
    lines = [(number, line.rstrip(" \t")) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines or not lines[0][1].startswith("v="):
        raise Refusal(400, "this is not SDP: it begins with v=0")
    session: list[Attribute] = []
    sections: list[tuple[re.Match[str], int, list[Attribute]]] = []
    for number, line in lines:
        if line.startswith("m="):
            found = re.fullmatch(r"m=([\w-]+) ([0-9]{1,5})(?:/[0-9]+)? ([\w/-]+)((?: +[^ ]+)*)", line, re.ASCII)
            if found is None or int(found[2]) > 65535:
                raise unreadable(number, line, "an m= line has a kind, a port, a protocol and formats")
            sections.append((found, number, []))
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            (sections[-1][2] if sections else session).append(Attribute(name.strip(), value.strip(), number))
        elif line[1:2] != "=":
            raise unreadable(number, line, "a line begins with a letter and =")
    if not sections:
        raise Refusal(400, "this is SDP without an m= section: there is nothing to connect")
    return Description(
        tuple(session),
        tuple(
            Section(m[1], int(m[2]), m[3], tuple(m[4].split()), number, _with_session(own, session))
            for m, number, own in sections
        ),
    )


def _with_session(own: list[Attribute], session: list[Attribute]) -> tuple[Attribute, ...]:
    """A section's attributes, and those of the session level that hold for it."""
    names = {each.name for each in own}
    shared = [each for each in session if each.name in _SHARED and each.name not in names]
    if not names.intersection(DIRECTIONS):
        shared += [each for each in session if each.name in DIRECTIONS]
    return tuple(own + shared)


_SETUP = ("actpass", "active", "passive", "holdconn")


def read_transport(section: Section) -> Transport:
    """What a section says of its own transport. Raises Refusal (400)."""
    for each in section.attributes:
        if each.name == "setup" and each.value not in _SETUP:
            raise unreadable(each.number, f"a=setup:{each.value}", f"a=setup is one of {', '.join(_SETUP)}")
        if each.name == "fingerprint" and not re.fullmatch(r"[\w-]+ +[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})+", each.value):
            raise unreadable(each.number, f"a=fingerprint:{each.value}")
        if each.name in ("ice-ufrag", "ice-pwd") and not re.fullmatch(r"[!-~]{1,256}", each.value):
            raise unreadable(each.number, f"a={each.name}:{each.value}")
    return Transport(
        section.value("ice-ufrag"),
        section.value("ice-pwd"),
        tuple(section.values("fingerprint")),
        section.value("setup"),
        section.has("rtcp-mux", "rtcp-mux-only"),
    )


def write_section(section: Section, mid: str, transport: Transport, direction: str) -> str:
    """A section as aiortc reads it. Attributes that aiortc could not read, and those of formats that it could not use,
    are left out; candidates are, too. Raises Refusal (400) for an a=rtpmap that cannot be read."""
    maps = _formats(section)
    lines = [
        f"m={section.kind} 9 UDP/TLS/RTP/SAVPF {' '.join(map(str, maps)) or '0'}",
        f"a={direction}",
        f"a=mid:{mid}",
        "a=rtcp-mux",
        *_extensions(section.values("extmap")),
        *_sources(section),
    ]
    for payload, codec in maps.items():
        lines.append(f"a=rtpmap:{payload} {codec}")
        lines += _feedback(section.values("rtcp-fb"), payload)
        lines += _parameters(section.values("fmtp"), payload, codec)
    lines += [f"a=ice-ufrag:{transport.ufrag}", f"a=ice-pwd:{transport.password}"]
    lines += [f"a=fingerprint:{' '.join(each.split())}" for each in transport.fingerprints]
    # A peer that would do either is given the client's role (RFC 8842 section 5.3), in which most certificates do.
    lines.append(f"a=setup:{'passive' if transport.setup == 'passive' else 'active'}")
    return "".join(f"{line}\r\n" for line in lines)


def write_description(sections: Iterable[str], groups: Iterable[Iterable[str]], lite: bool) -> str:
    """A description of sections as write_section makes them. groups: the mids of those that share a transport."""
    head = ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0", *(["a=ice-lite"] if lite else [])]
    head += [f"a=group:BUNDLE {' '.join(group)}" for group in groups]
    return "".join(f"{line}\r\n" for line in head) + "".join(sections)


def _formats(section: Section) -> dict[int, str]:
    """{payload type: codec as in a=rtpmap}, in the order of the m= line. aiortc takes no other payload types."""
    maps: dict[int, str] = {}
    for each in section.attributes:
        if each.name != "rtpmap":
            continue
        found = re.fullmatch(r"([0-9]{1,3}) +([\w.+-]+)/([0-9]{1,9})(?:/([0-9]{1,3}))?", each.value, re.ASCII)
        if found is None:
            raise unreadable(each.number, f"a=rtpmap:{each.value}")
        maps.setdefault(int(found[1]), "/".join(filter(None, found.groups()[1:])))
    known = {}
    for word in section.formats:
        payload = int(word) if re.fullmatch("[0-9]{1,3}", word) else -1
        if payload in DYNAMIC_PAYLOAD_TYPES and payload in maps:
            known[payload] = maps[payload]
        elif section.kind == "audio" and payload in _STATIC:
            known[payload] = maps.get(payload, _STATIC[payload])
    return known


def _extensions(values: Iterable[str]) -> list[str]:
    found = (re.fullmatch(r"([0-9]{1,2})(?:/\w+)? +(\S+)(?: .*)?", value) for value in values)
    return [f"a=extmap:{each[1]} {each[2]}" for each in found if each and 1 <= int(each[1]) <= 14]


def _sources(section: Section) -> list[str]:
    """The first SSRC, and that of its retransmissions. aiortc takes a second one for that, whatever it is."""
    known = [found[0] for each in section.values("ssrc") if (found := re.match(r"[0-9]{1,10}(?= )", each))]
    pairs = [found for each in section.values("ssrc-group") if (found := re.fullmatch(r"FID +(\d+) +(\d+)", each))]
    pair = next(([each[1], each[2]] for each in pairs if known and each[1] == known[0]), known[:1])
    return [f"a=ssrc:{ssrc} cname:-" for ssrc in pair if int(ssrc) < 2**32]


def _feedback(values: Iterable[str], payload: int) -> list[str]:
    found = (re.fullmatch(r"(\*|[0-9]{1,3}) +(\S.*)", value) for value in values)
    return [f"a=rtcp-fb:{payload} {each[2]}" for each in found if each and each[1] in ("*", str(payload))]


def _parameters(values: Iterable[str], payload: int, codec: str) -> list[str]:
    """a=fmtp of a payload type, without the parameters whose numbers are none. H.264 of which no packetization-mode is
    said is taken as what everybody reads, mode 1, though RFC 6184 has it be mode 0: GStreamer and others that say none
    read both, and the answer says which it is."""
    found = (re.fullmatch(r"([0-9]{1,3}) +(.+)", value) for value in values)
    texts = [each[2] for each in found if each and int(each[1]) == payload]
    kept = []
    for parameter in texts[-1].split(";") if texts else []:
        name, equals, value = (word.strip() for word in parameter.partition("="))
        if name and not (equals and name in FMTP_INT_PARAMETERS and not re.fullmatch("-?[0-9]{1,9}", value)):
            kept.append(f"{name}{equals}{value}")
    if codec.upper().startswith("H264/") and not any(each.startswith("packetization-mode=") for each in kept):
        kept.append("packetization-mode=1")
    return [f"a=fmtp:{payload} {';'.join(kept)}"] if kept else []
