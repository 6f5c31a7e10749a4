"""What a peer offers in SDP, what of it is taken, and the answer.

aiortc fails a whole offer for one part that it has no codec for. Here a part is refused alone, with port 0 (RFC 9429
section 5.3.1, RFC 9725 section 4.4.2): it is taken out before aiortc sees the offer and put into its answer.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from aiortc import RTCIceCandidate, sdp
from aiortc.codecs import CODECS
from aiortc.rtcpeerconnection import find_common_codecs

MAX_PARTS = 16
MAX_CANDIDATES = 32


class Refusal(Exception):
    """A request that is refused. status: of HTTP; the message is one line; headers: more of the response."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


@dataclass(frozen=True)
class Part:
    """One m= section. index: its place; codecs: names in lower case that aiortc and the peer have in common; takes,
    gives: whether the peer wants to receive and to send."""

    index: int
    mid: str
    kind: str
    codecs: frozenset[str]
    takes: bool
    gives: bool


@dataclass(frozen=True)
class Offer:
    """An offer that can be read."""

    description: sdp.SessionDescription
    parts: tuple[Part, ...]

    def first(self, kind: str, wanted: Callable[[Part], bool]) -> Part | None:
        """The first part of a kind that will do."""
        return next((part for part in self.parts if part.kind == kind and wanted(part)), None)


def _codecs(media: sdp.MediaDescription) -> frozenset[str]:
    if media.kind not in CODECS:
        return frozenset()
    common = find_common_codecs(CODECS[media.kind], media.rtp.codecs)
    return frozenset(codec.name.lower() for codec in common) - {"rtx"}


def read_offer(text: str) -> Offer:
    """Raises Refusal: 400 for what is no SDP, 422 for SDP that is no offer of WebRTC."""
    try:
        description = sdp.SessionDescription.parse(text)
        if not text.lstrip().startswith("v=") or not description.media:
            raise ValueError
    except Exception:  # the parser stumbles in many ways
        raise Refusal(400, "this is not an SDP offer") from None
    if len(description.media) > MAX_PARTS:
        raise Refusal(422, f"the offer has more than {MAX_PARTS} m= sections")
    parts = []
    for index, media in enumerate(description.media):
        mid = media.rtp.muxId
        if not mid or mid in (part.mid for part in parts):
            raise Refusal(422, "each m= section of the offer needs an a=mid of its own")
        if not media.ice.usernameFragment or not media.ice.password:
            raise Refusal(422, "the offer has no ICE user name and password")
        if media.dtls is None or not media.dtls.fingerprints:
            raise Refusal(422, "the offer has no DTLS fingerprint and a=setup")
        direction = media.direction or "sendrecv"
        takes, gives = direction in ("recvonly", "sendrecv"), direction in ("sendonly", "sendrecv")
        parts.append(Part(index, mid, media.kind, _codecs(media), takes, gives))
        media.ice_candidates = media.ice_candidates[:MAX_CANDIDATES]
    return Offer(description, tuple(parts))


def take(offer: Offer, kept: Collection[Part]) -> str:
    """The offer with nothing but the parts that are kept, for aiortc."""
    description = offer.description
    indices = {part.index for part in kept}
    mids = {part.mid for part in kept}
    media = [description.media[index] for index in sorted(indices)]
    # candidates of a bundle may be told in a part that is not kept
    if media and not media[0].ice_candidates:
        for other in description.media:
            if other.ice_candidates and other.ice.usernameFragment == media[0].ice.usernameFragment:
                media[0].ice_candidates = other.ice_candidates
                media[0].ice_candidates_complete = other.ice_candidates_complete
                break
    groups = []
    for group in description.group:
        items = [item for item in group.items if item in mids]
        groups.append(sdp.GroupDescription(group.semantic, items))
    taken = sdp.SessionDescription()
    taken.origin, taken.name, taken.time = description.origin, description.name, description.time
    taken.group, taken.msid_semantic, taken.media = groups, description.msid_semantic, media
    taken.type = "offer"
    return str(taken)


def take_names(offer: Offer, kept: Collection[Part]) -> list[RTCIceCandidate]:
    """Take out of the offer the candidates that have an mDNS name for an address; those of the parts that are kept."""
    indices, named = {part.index for part in kept}, []
    for part in offer.parts:
        media = offer.description.media[part.index]
        found = [candidate for candidate in media.ice_candidates if candidate.ip.endswith(".local")]
        if not found:
            continue
        media.ice_candidates = [candidate for candidate in media.ice_candidates if candidate not in found]
        media.ice_candidates_complete = False  # they are yet to come
        for candidate in found if part.index in indices else []:
            candidate.sdpMid = part.mid
            named.append(candidate)
    return named


def answer(offer: Offer, kept: Collection[Part], made: str) -> str:
    """aiortc's answer to what was kept, with the other parts refused in their places."""
    head, *sections = re.split(r"(?m)^(?=m=)", made)
    waiting = iter(sections)
    indices = {part.index for part in kept}
    out = [head]
    for part in offer.parts:
        if part.index in indices:
            out.append(next(waiting))
            continue
        media = offer.description.media[part.index]
        formats = " ".join(str(format) for format in media.fmt)
        lines = [f"m={media.kind} 0 {media.profile} {formats}", "c=IN IP4 0.0.0.0", "a=inactive", f"a=mid:{part.mid}"]
        out.append("".join(f"{line}\r\n" for line in lines))
    return "".join(out)
