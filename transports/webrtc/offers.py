"""What a peer offers in SDP, what of it is taken, and the answer.

Each part is taken or refused alone, with port 0 (RFC 9429 section 5.3.1, RFC 9725 section 4.4.2). aiortc sees the parts
that are taken and nothing else, in the form of description.py; the rest of the answer is written here.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from aiortc import RTCIceCandidate, sdp
from aiortc.codecs import CODECS
from aiortc.rtcpeerconnection import find_common_codecs

from transports.webrtc.candidates import read_candidate
from transports.webrtc.description import (
    Description,
    Section,
    Transport,
    read_description,
    read_transport,
    unreadable,
    write_description,
    write_section,
)
from transports.webrtc.refusals import Refusal

MAX_PARTS = 16

_PROFILE = re.compile(r"((UDP|TCP)/(D?TLS)/|DTLS/)?RTP/S?AVPF?")


@dataclass(frozen=True)
class Part:
    """One m= section. index: its place; mid: its name, its own or one given here; codecs: names in lower case that
    aiortc and the peer have in common; takes, gives: whether the peer wants to receive and to send; group: the BUNDLE
    group that it is in (RFC 9143), by its place among them, None for none; fault: why it cannot be connected, ""
    if it can."""

    index: int
    mid: str
    kind: str
    codecs: frozenset[str]
    takes: bool
    gives: bool
    group: int | None
    fault: str
    section: Section
    transport: Transport
    candidates: tuple[RTCIceCandidate, ...]


@dataclass(frozen=True)
class Offer:
    """An offer that can be read. groups: the mids of each BUNDLE group; lite: the peer speaks ICE lite."""

    parts: tuple[Part, ...]
    groups: tuple[tuple[str, ...], ...]
    lite: bool

    def first(self, kind: str, wanted: Callable[[Part], bool]) -> Part | None:
        """The first part of a kind that will do and can be connected."""
        return next((part for part in self.parts if part.kind == kind and not part.fault and wanted(part)), None)

    def faults(self, kind: str, wanted: Callable[[Part], bool]) -> None:
        """Raises Refusal (422) if a part would do, were it not for how it is to be connected."""
        for part in self.parts:
            if part.kind == kind and part.fault and wanted(part):
                raise Refusal(422, part.fault)


def read_offer(text: str) -> Offer:
    """Raises Refusal: 400 for what is no SDP, 422 for SDP that is no offer of WebRTC."""
    description = read_description(text)
    sections = description.sections
    if len(sections) > MAX_PARTS:
        raise Refusal(422, f"the offer has more than {MAX_PARTS} m= sections")
    mids = _mids(sections)
    groups = _groups(description, mids)
    transports = [_transport(section) for section in sections]
    parts = []
    for index, (section, mid) in enumerate(zip(sections, mids, strict=True)):
        group = next((place for place, group in enumerate(groups) if mid in group), None)
        transport = transports[index]
        if group is not None and not _is_rejected(section):
            # the first of a bundle speaks for all that do not speak for themselves (RFC 9143 section 7.1.3)
            first = next(mids.index(each) for each in groups[group] if not _is_rejected(sections[mids.index(each)]))
            transport = transport.filled(transports[first])
        parts.append(_part(index, section, mid, group, transport))
    return Offer(tuple(parts), groups, any(each.name == "ice-lite" for each in description.attributes))


def _is_rejected(section: Section) -> bool:
    """Whether the peer itself does not want it: port 0, but for one that is offered within a bundle only (RFC 9143)."""
    return section.port == 0 and not section.has("bundle-only")


def _transport(section: Section) -> Transport:
    return Transport() if _is_rejected(section) else read_transport(section)


def _mids(sections: Iterable[Section]) -> list[str]:
    """The names of the sections. One without is given one (RFC 9429 section 5.10). Raises Refusal (422)."""
    told = [section.value("mid") for section in sections]
    named = [mid for mid in told if mid]
    if len(set(named)) < len(named):
        raise Refusal(422, "two m= sections of the offer have the same a=mid")
    for mid in named:
        if re.fullmatch(r"[!-~]{1,64}", mid) is None:
            raise Refusal(422, "an a=mid of the offer is longer than 64 characters, or has some that it may not have")
    spare = (name for name in (f"part{number}" for number in range(2 * len(told))) if name not in named)
    return [mid or next(spare) for mid in told]


def _groups(description: Description, mids: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The BUNDLE groups. Others, such as LS, are not answered (RFC 5888 section 9.2)."""
    groups, seen = [], set()
    for each in description.attributes:
        semantics, *names = each.value.split() or [""]
        if each.name == "group" and semantics == "BUNDLE":
            group = [name for name in dict.fromkeys(names) if name in mids and name not in seen]
            seen.update(group)
            groups.append(tuple(group))
    return tuple(groups)


def _part(index: int, section: Section, mid: str, group: int | None, transport: Transport) -> Part:
    if _is_rejected(section):
        nothing: frozenset[str] = frozenset()
        return Part(index, mid, section.kind, nothing, False, False, group, "it is rejected", section, transport, ())
    takes, gives = section.direction in ("recvonly", "sendrecv"), section.direction in ("sendonly", "sendrecv")
    codecs, candidates = _codecs(section), _candidates(section)
    fault = _fault(section, transport)
    return Part(index, mid, section.kind, codecs, takes, gives, group, fault, section, transport, candidates)


def _fault(section: Section, transport: Transport) -> str:
    """Why a section cannot be connected."""
    if section.kind not in CODECS:
        return "it is neither audio nor video"
    if _PROFILE.fullmatch(section.profile) is None:
        return f"the offer has m={section.kind} over {section.profile[:40]}: offer UDP/TLS/RTP/SAVPF"
    if not transport.ufrag or not transport.password:
        return "the offer has no ICE user name and password"
    if not transport.fingerprints or transport.setup in ("", "holdconn"):
        return "the offer has no DTLS fingerprint and a=setup"
    if not transport.mux:
        return f"the offer has no a=rtcp-mux for its {section.kind}: RTP and RTCP share one port here (RFC 5761)"
    return ""


def _codecs(section: Section) -> frozenset[str]:
    if section.kind not in CODECS:
        return frozenset()
    text = write_description([write_section(section, "0", Transport("0", "0", (), "active"), "sendrecv")], [], False)
    try:
        offered = sdp.SessionDescription.parse(text).media[0].rtp.codecs
        common = find_common_codecs(CODECS[section.kind], offered)
    except (ValueError, KeyError, IndexError, AssertionError):  # formats that nobody could use
        raise unreadable(section.number, f"m={section.kind}", "its formats contradict each other") from None
    return frozenset(codec.name.lower() for codec in common) - {"rtx"}


def _candidates(section: Section) -> tuple[RTCIceCandidate, ...]:
    """Raises Refusal (400)."""
    found = []
    for each in section.attributes:
        if each.name == "candidate":
            try:
                found.append(read_candidate(each.value))
            except ValueError as error:
                raise unreadable(each.number, f"a=candidate:{each.value}", str(error)) from None
    return tuple(candidate for candidate in found if candidate is not None)


def idle(offer: Offer, kept: Collection[Part]) -> dict[int, Part]:
    """{BUNDLE group: the part that leads it}, where that is not kept and others of the group are. Its transport
    is that of all, and libwebrtc cannot do without it (RFC 9143 section 7.3): such a part is answered as inactive, with
    its own codecs, and nothing is ever sent for it."""
    found = {}
    for place, group in enumerate(offer.groups):
        members = [part for mid in group for part in offer.parts if part.mid == mid and not _is_rejected(part.section)]
        if any(part in kept for part in members) and members[0] not in kept and not members[0].fault:
            found[place] = members[0]
    return found


def _shared(part: Part, leaders: dict[int, Part]) -> Transport:
    leader = None if part.group is None else leaders.get(part.group)
    return part.transport if leader is None else leader.transport


def take(offer: Offer, kept: Collection[Part]) -> str:
    """The offer with nothing but the parts that are kept and without candidates, for aiortc."""
    mids, leaders = {part.mid for part in kept}, idle(offer, kept)
    sections = [
        write_section(part.section, part.mid, _shared(part, leaders), part.section.direction)
        for part in sorted(kept, key=lambda part: part.index)
    ]
    groups = [[mid for mid in group if mid in mids] for group in offer.groups]
    return write_description(sections, [group for group in groups if group], offer.lite)


def routes(offer: Offer, kept: Collection[Part]) -> dict[str, str]:
    """{mid of a part: mid of the part that is kept whose transport is the same}. Candidates of a bundle may be told in
    a part that is not kept."""
    leaders, found = idle(offer, kept), {}
    for part in offer.parts:
        if part.group is None:
            ends = [part] if part in kept else []
        else:
            ends = [each for mid in offer.groups[part.group] for each in kept if each.mid == mid]
        if ends and _shared(ends[0], leaders).ufrag == part.transport.ufrag:
            found[part.mid] = ends[0].mid
    return found


def with_one_fingerprint(text: str) -> str:
    """A description by aiortc, which has a fingerprint for each of three hashes, with that for SHA-256 alone, as
    browsers have it. libdatachannel 0.24 takes the last of several, and where DTLS comes before it has read the answer,
    as in a local network, holds the hash of another against it."""
    return re.sub(r"(?m)^a=fingerprint:(?!sha-256 ).*\r\n", "", text)


def answer(offer: Offer, kept: Collection[Part], made: str) -> str:
    """aiortc's answer to what was kept, with the other parts refused in their places, and nothing in it that was not
    offered: neither a BUNDLE group nor an a=mid."""
    head, *sections = re.split(r"(?m)^(?=m=)", with_one_fingerprint(made))
    given = dict(zip((part.mid for part in sorted(kept, key=lambda part: part.index)), sections, strict=True))
    for group, leader in idle(offer, kept).items():
        first = next(given[mid] for mid in offer.groups[group] if mid in given)
        given[leader.mid] = _inactive(leader, first)
    groups = [[mid for mid in group if mid in given] for group in offer.groups]
    told = "".join(f"a=group:BUNDLE {' '.join(group)}\r\n" for group in groups if group)
    out = [re.sub(r"(?m)^a=group:.*\r\n", "", head) + told]
    for part in offer.parts:
        section = part.section
        if part.mid in given:
            text = re.sub(r"\A(m=\S+ \S+ )\S+", lambda m, section=section: m[1] + section.profile, given[part.mid])
            out.append(text if section.value("mid") else re.sub(r"(?m)^a=mid:.*\r\n", "", text))
            continue
        lines = [f"m={section.kind} 0 {section.profile} {' '.join(section.formats) or '0'}", "c=IN IP4 0.0.0.0"]
        lines += [] if section.kind not in CODECS else ["a=inactive"]
        lines += [f"a=mid:{part.mid}"] if section.value("mid") else []
        out.append("".join(f"{line}\r\n" for line in lines))
    return "".join(out)


_OF_TRANSPORT = re.compile(r"(?m)^a=(?:candidate|end-of-candidates|ice-|fingerprint:|setup:|rtcp:|rtcp-mux).*\r\n")


def _inactive(part: Part, other: str) -> str:
    """The section of an answer that accepts a part and has nothing come of it. other: that of a part on the same
    transport."""
    section, port = part.section, other.split(" ", 2)[1]
    lines = [f"m={section.kind} {port} {section.profile} {' '.join(section.formats)}", "c=IN IP4 0.0.0.0", "a=inactive"]
    lines.append(f"a=mid:{part.mid}")
    lines += [
        f"a={each.name}:{each.value}"
        for each in section.attributes
        if each.name in ("rtpmap", "fmtp") and each.value.partition(" ")[0] in section.formats
    ]
    return "".join(f"{line}\r\n" for line in lines) + "".join(_OF_TRANSPORT.findall(other))
