"""What another server answers to our offer (RFC 9725), in the form that aiortc reads.

aiortc takes an answer only if each part of the offer is accepted, and forgets what it has no word for, as with offers
(description.py). A voice that is refused (port 0) is told to it as one that nothing is sent for.
"""

from dataclasses import dataclass

from aiortc import RTCIceCandidate

from transports.webrtc.candidates import read_candidate
from transports.webrtc.description import read_description, read_transport, write_description, write_section
from transports.webrtc.refusals import Refusal


@dataclass(frozen=True)
class Answer:
    """text: for aiortc, without candidates; candidates: with the mid that each is for; routes: {mid of a part: mid of
    the one whose transport it uses}."""

    text: str
    candidates: tuple[tuple[str, RTCIceCandidate], ...]
    routes: dict[str, str]


def read_answer(text: str, offered: str) -> Answer:
    """offered: our offer. Raises Refusal for an answer that nothing comes of; the message is one line."""
    answered, ours = read_description(text), read_description(offered).sections
    theirs = answered.sections
    if [section.kind for section in theirs] != [section.kind for section in ours]:
        raise Refusal(422, "its answer has other parts than the offer")
    refused = [section.kind for section in theirs if section.port == 0]
    if "video" in refused or len(refused) == len(theirs):
        raise Refusal(422, f"the server refuses {' and '.join(refused)}: it may take another codec")
    first = next(index for index, section in enumerate(theirs) if section.port)
    mids, leader = [section.value("mid") for section in ours], read_transport(theirs[first])
    bundled = any(each.name == "group" and each.value.startswith("BUNDLE") for each in answered.attributes)
    sections, routes, candidates = [], {}, []
    for mid, section, own in zip(mids, theirs, ours, strict=True):
        if section.port:
            sections.append(write_section(section, mid, read_transport(section).filled(leader), section.direction))
        else:
            sections.append(write_section(own, mid, leader, "inactive"))
        routes[mid] = mids[first] if bundled or not section.port else mid
        candidates += [(mid, each) for each in _candidates(section.values("candidate"))]
    shared = [mid for mid in mids if routes[mid] == mids[first]]
    lite = any(each.name == "ice-lite" for each in answered.attributes)
    return Answer(write_description(sections, [shared], lite), tuple(candidates), routes)


def _candidates(values: list[str]) -> list[RTCIceCandidate]:
    """Those that can be used; a server's mistake in one is not held against the others."""
    found = []
    for value in values:
        try:
            found.append(read_candidate(value))
        except ValueError:
            continue
    return [candidate for candidate in found if candidate is not None]
