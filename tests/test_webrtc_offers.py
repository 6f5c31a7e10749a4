"""Offers as clients of all kinds send them: which parts are taken and which refused, and that each answer is valid.
tests/offers says where they come from."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aioice import stun
from aiortc import RTCPeerConnection, RTCSessionDescription
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_webrtc_whip import Tone
from webrtc_peers import ALONE, Head, listeners, offer, post, serving, until

from transports.webrtc import sessions
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.candidates import MAX_CANDIDATES, MAX_HOSTS, read_candidate
from transports.webrtc.description import read_description
from transports.webrtc.offers import read_offer, take
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.refusals import Refusal
from transports.webrtc.whep import whep_routes
from transports.webrtc.whip import Speakers, whip_routes

OFFERS = {path.stem: path.read_bytes().decode() for path in sorted((Path(__file__).parent / "offers").glob("*.sdp"))}
TAKEN, INACTIVE, REFUSED = "taken", "inactive", "refused"


class Place:
    """Both endpoints beside a live head."""

    def __init__(self) -> None:
        self.ears, listen = listeners()
        self.broadcast = Broadcast(WebRtcOptions(viewers=1000))
        self.speakers = Speakers(WebRtcOptions(speakers=100), listen)
        self.open = {"/whep": self.broadcast.sessions, "/whip": self.speakers.sessions}

    async def ask(self, path: str, text: str):
        """(status, answer); the session is ended."""
        status, headers, answer = await post(self.client, self.url + path, text)
        assert len(self.open[path]) == (status == 201)
        if status == 201:
            await self.open[path].get(headers["Location"].rpartition("/")[2]).end()
        return status, answer


def at(test) -> None:
    """Run `test(place)`."""

    async def main():
        place = Place()
        routes = [*whep_routes(place.broadcast), *whip_routes(place.speakers)]
        async with Head([place.broadcast]).live(), serving(*routes) as (place.client, place.url):
            try:
                await test(place)
            finally:
                await place.broadcast.aclose()
                await place.speakers.aclose()

    asyncio.run(main())


# --- what a valid answer is


def sections(text: str) -> list[str]:
    return re.split(r"(?m)^(?=m=)", text)


def values(section: str, name: str) -> list[str]:
    return re.findall(rf"(?m)^a={name}(?::(.*?))?[ \r]*$", section)


def direction(section: str, session: str = "") -> str:
    found = re.search(r"(?m)^a=(sendrecv|sendonly|recvonly|inactive)\r?$", section)
    found = found or re.search(r"(?m)^a=(sendrecv|sendonly|recvonly|inactive)\r?$", session)
    return found[1] if found else "sendrecv"


def groups(session: str) -> list[list[str]]:
    return [value.split()[1:] for value in values(session, "group") if value.startswith("BUNDLE")]


def check_answer(offered: str, answer: str) -> list[str]:
    """What became of each part, if the answer is valid for the offer (RFC 3264, RFC 8829, RFC 9143)."""
    told, *theirs = sections(offered)
    session, *ours = sections(answer)
    assert answer.endswith("\r\n") and "\n" not in answer.replace("\r\n", "") and session.startswith("v=0\r\no=")
    assert len(ours) == len(theirs)
    fates, accepted = [], []
    for theirs_, ours_ in zip(theirs, ours, strict=True):
        kind, _, profile, *formats = theirs_.splitlines()[0].split()
        kind_, port, profile_, *formats_ = ours_.splitlines()[0].split()
        assert (kind, profile) == (kind_, profile_)
        assert values(theirs_, "mid") == values(ours_, "mid")
        assert set(formats_) <= set(formats) and formats_
        if port == "0":
            fates.append(REFUSED)
            assert not values(ours_, "candidate") and not values(ours_, "bundle-only")
            continue
        accepted += values(ours_, "mid")
        assert {each.split()[0] for each in values(ours_, "rtpmap")} == set(formats_)
        for name in ("fmtp", "rtcp-fb"):
            assert {each.split()[0] for each in values(ours_, name)} <= set(formats_)
        assert len(values(ours_, "ice-ufrag")) == len(values(ours_, "ice-pwd")) == 1
        assert [each.split()[0] for each in values(ours_, "fingerprint")] == ["sha-256"]
        setup = (values(theirs_, "setup") or values(told, "setup") or ["actpass"])[0]
        assert values(ours_, "setup") == ["active" if setup == "passive" else "passive"]
        assert "rtcp-mux" in ours_ and not values(ours_, "bundle-only")
        extensions = {re.sub(r"^(\d+)(/\w+)?( \S+).*", r"\1\3", each) for each in values(theirs_, "extmap")}
        assert set(values(ours_, "extmap")) <= extensions
        wants, gives = direction(theirs_, told), direction(ours_)
        opposite = {"sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
        assert gives == "inactive" or wants == "sendrecv" or gives == opposite[wants]
        fates.append(INACTIVE if gives == "inactive" else TAKEN)
    assert not re.search("a=group:(?!BUNDLE)", session)
    assert groups(session) == [kept for group in groups(told) if (kept := [mid for mid in group if mid in accepted])]
    return fates


# --- the shapes

Change = Callable[[str], str]
same: Change = lambda text: text  # noqa: E731


def without(pattern: str) -> Change:
    return lambda text: re.sub(rf"(?m)^{pattern}\r?\n", "", text)


def swap(pattern: str, by: str, count: int = 0) -> Change:
    return lambda text: re.sub(pattern, by, text, count=count, flags=re.MULTILINE)


def at_session(*names: str) -> Change:
    """Attributes at session level, as they stand in the first section, and no longer in any."""

    def change(text: str) -> str:
        session, *parts = sections(text)
        for name in names:
            lines = re.findall(rf"(?m)^a={name}\b.*\r\n", parts[0])
            parts = [re.sub(rf"(?m)^a={name}\b.*\r\n", "", part) for part in parts]
            session += "".join(lines)
        return session + "".join(parts)

    return change


def both(*changes: Change) -> Change:
    def change(text: str) -> str:
        for each in changes:
            text = each(text)
        return text

    return change


def in_part(index: int, change: Change) -> Change:
    def changed(text: str) -> str:
        session, *parts = sections(text)
        parts[index] = change(parts[index])
        return session + "".join(parts)

    return changed


def only(*indices: int) -> Change:
    def change(text: str) -> str:
        session, *parts = sections(text)
        return session + "".join(parts[index] for index in indices)

    return change


TRANSPORT = at_session("ice-ufrag", "ice-pwd", "ice-options", "fingerprint", "setup")
NO_TRANSPORT = without(r"a=(ice-|fingerprint|setup|candidate|end-of|rtcp-mux|rtcp:).*")
NO_RTCP = without(r"a=rtcp:.*")
BUNDLE_ONLY = both(swap(r"^(m=\S+) \d+", r"\1 0"), NO_TRANSPORT, lambda part: part + "a=bundle-only\r\n")
REJECT = swap(r"^(m=\S+) \d+", r"\1 0")
BARE = both(REJECT, without(r"(a|c)=.*"))
APPLICATION = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:d\r\na=sctp-port:5000\r\n"
STATIC = both(without(r"a=rtpmap.*"), without(r"a=fmtp.*"), without(r"a=rtcp-fb.*"))

ODD = r"a=fmtp:\r\na=rtcp-fb:x\r\na=extmap:1\r\na=ssrc:1\r\na=msid:\r\na=rtcp:\r\nc=IN IP4 a.local\r"

#: (offer, what is changed, endpoint, what becomes of its parts)
SHAPES: dict[str, tuple[str, Change, str, list[str]]] = {
    # as they are
    "obs": ("obs", same, "/whip", [TAKEN, INACTIVE]),
    "obs hevc": ("obs-hevc", same, "/whip", [TAKEN, REFUSED]),
    "obs av1": ("obs-av1", same, "/whip", [TAKEN, REFUSED]),
    "ffmpeg": ("ffmpeg-send", same, "/whip", [TAKEN, INACTIVE]),
    "libdatachannel": ("libdatachannel-send", same, "/whip", [TAKEN, INACTIVE]),
    "gstreamer watches": ("gstreamer-watch", same, "/whep", [TAKEN, TAKEN]),
    "pion watches": ("pion-watch", same, "/whep", [TAKEN, TAKEN]),
    "safari": ("safari-send", same, "/whip", [TAKEN, INACTIVE]),
    "firefox watches": ("firefox-watch", same, "/whep", [TAKEN, TAKEN]),
    "firefox watches with data": ("firefox-watch-data-first", same, "/whep", [TAKEN, TAKEN, REFUSED]),
    "firefox": ("firefox-send", same, "/whip", [TAKEN, INACTIVE]),
    "chromium watches": ("chromium-watch", same, "/whep", [TAKEN, TAKEN]),
    "chromium watches, balanced": ("chromium-watch-balanced", same, "/whep", [TAKEN, TAKEN]),
    "chromium watches with data": ("chromium-watch-data-first", same, "/whep", [TAKEN, TAKEN, REFUSED]),
    "chromium": ("chromium-send", same, "/whip", [TAKEN, INACTIVE]),
    "simulcast": ("chromium-simulcast", same, "/whip", [TAKEN, INACTIVE]),
    "av1 leads the bundle": ("chromium-av1-first", same, "/whip", [INACTIVE, TAKEN]),
    "pcmu": ("chromium-pcmu", same, "/whip", [TAKEN]),
    # of each kind
    "audio only": ("obs", both(only(0), swap("BUNDLE 0 1", "BUNDLE 0")), "/whip", [TAKEN]),
    "video only": ("pion-watch", both(only(0), swap("BUNDLE 0 1", "BUNDLE 0")), "/whep", [TAKEN]),
    "a voice to hear only": ("pion-watch", both(only(1), swap("BUNDLE 0 1", "BUNDLE 1")), "/whep", [TAKEN]),
    "pcmu without rtpmap": ("chromium-pcmu", both(STATIC, swap(r"^(m=audio 9 \S+).*", r"\1 0\r")), "/whip", [TAKEN]),
    "pcma without rtpmap": ("chromium-pcmu", both(STATIC, swap(r"^(m=audio 9 \S+).*", r"\1 8\r")), "/whip", [TAKEN]),
    "g722 without rtpmap": ("chromium-pcmu", both(STATIC, swap(r"^(m=audio 9 \S+).*", r"\1 9\r")), "/whip", [TAKEN]),
    # rtcp
    "no a=rtcp": ("chromium-send", NO_RTCP, "/whip", [TAKEN, INACTIVE]),
    "a=rtcp with a name": (
        "chromium-watch",
        swap("^a=rtcp:.*\r", "a=rtcp:9 IN IP4 a.local\r"),
        "/whep",
        [TAKEN, TAKEN],
    ),
    "a=rtcp-mux-only": ("pion-watch", swap("^a=rtcp-mux\r", "a=rtcp-mux-only\r"), "/whep", [TAKEN, TAKEN]),
    "rtcp-mux in the first only": ("obs", in_part(1, without("a=rtcp-mux")), "/whip", [TAKEN, INACTIVE]),
    # direction
    "no direction": ("obs", without("a=sendonly"), "/whip", [TAKEN, INACTIVE]),
    "no direction, watching": ("pion-watch", without("a=recvonly"), "/whep", [TAKEN, TAKEN]),
    "direction at session level": ("obs", at_session("sendonly"), "/whip", [TAKEN, INACTIVE]),
    "session's direction, watching": ("pion-watch", at_session("recvonly"), "/whep", [TAKEN, TAKEN]),
    "a part overrides it": ("pion-watch", swap("^t=0 0", "t=0 0\r\na=inactive"), "/whep", [TAKEN, TAKEN]),
    # ice and dtls
    "transport at session level": ("chromium-send", TRANSPORT, "/whip", [TAKEN, INACTIVE]),
    "transport in the first only": ("libdatachannel-send", in_part(1, NO_TRANSPORT), "/whip", [TAKEN, INACTIVE]),
    "no candidates": ("obs", without(r"a=(candidate|end-of).*"), "/whip", [TAKEN, INACTIVE]),
    "setup active": ("obs", swap("actpass", "active"), "/whip", [TAKEN, INACTIVE]),
    "setup passive": ("obs", swap("actpass", "passive"), "/whip", [TAKEN, INACTIVE]),
    "several fingerprints": (
        "obs",
        swap(r"^(a=fingerprint:sha-256 .*)\r", r"\1\r\na=fingerprint:sha-1 00:11\r"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "ice lite": ("obs", swap("^t=0 0", "t=0 0\r\na=ice-lite"), "/whip", [TAKEN, INACTIVE]),
    "end-of-candidates at session level": (
        "pion-watch",
        swap("^t=0 0", "t=0 0\r\na=end-of-candidates"),
        "/whep",
        [TAKEN, TAKEN],
    ),
    # parts
    "bundle-only": ("obs", in_part(1, BUNDLE_ONLY), "/whip", [TAKEN, INACTIVE]),
    "a bundle-only voice behind pictures": (
        "safari-send",
        both(in_part(0, BUNDLE_ONLY), swap("BUNDLE 0 1", "BUNDLE 1 0")),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "rejected pictures": ("obs", in_part(1, REJECT), "/whip", [TAKEN, REFUSED]),
    "rejected pictures with nothing said": ("obs", in_part(1, BARE), "/whip", [TAKEN, REFUSED]),
    "a rejected voice": ("pion-watch", in_part(1, BARE), "/whep", [TAKEN, REFUSED]),
    "rejected in front": ("pion-watch", in_part(0, BARE), "/whep", [REFUSED, TAKEN]),
    "a data channel in front": (
        "obs",
        both(lambda text: text.replace("m=audio", APPLICATION + "m=audio", 1), swap("BUNDLE 0 1", "BUNDLE d 0 1")),
        "/whip",
        [REFUSED, TAKEN, INACTIVE],
    ),
    "two voices": (
        "obs",
        both(lambda text: text + sections(text)[1].replace("mid:0", "mid:2"), swap("BUNDLE 0 1", "BUNDLE 0 1 2")),
        "/whip",
        [TAKEN, INACTIVE, REFUSED],
    ),
    "text and image": (
        "obs",
        lambda text: text + "m=text 9 RTP/AVP 98\r\na=rtpmap:98 t140/1000\r\nm=image 9 udptl t38\r\n",
        "/whip",
        [TAKEN, INACTIVE, REFUSED, REFUSED],
    ),
    # groups and names
    "no bundle": ("chromium-watch", without("a=group.*"), "/whep", [TAKEN, TAKEN]),
    "no bundle, speaking": ("chromium-send", without("a=group.*"), "/whip", [TAKEN, REFUSED]),
    "two bundles": (
        "chromium-watch",
        swap("^a=group:BUNDLE 0 1", "a=group:BUNDLE 0\r\na=group:BUNDLE 1"),
        "/whep",
        [TAKEN, TAKEN],
    ),
    "names that are not there": ("obs", swap("BUNDLE 0 1", "BUNDLE x 0 1 y"), "/whip", [TAKEN, INACTIVE]),
    "no names": ("chromium-watch", both(without("a=mid.*"), without("a=group.*")), "/whep", [TAKEN, TAKEN]),
    "one part without a name": ("chromium-pcmu", both(without("a=mid.*"), without("a=group.*")), "/whip", [TAKEN]),
    "long names": ("obs", swap("^a=mid:0", "a=mid:audio-" + "0" * 50), "/whip", [TAKEN, REFUSED]),
    # how it is written
    "lines that end in LF": ("obs", lambda text: text.replace("\r\n", "\n"), "/whip", [TAKEN, INACTIVE]),
    "no last line end": ("obs", str.strip, "/whip", [TAKEN, INACTIVE]),
    "blanks at ends and in fmtp": (
        "safari-send",
        both(swap(r"\r$", " \r"), swap(";", "; ")),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "attributes nobody knows": (
        "obs",
        swap(r"^(a=mid:.*)\r", r"\1\r\na=x-unknown:1 2 3\r\nb=AS:300\r\ni=a title\r"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "attributes that say nothing": ("safari-send", swap(r"^(a=mid:.*)\r", r"\1\r\n" + ODD), "/whip", [TAKEN, INACTIVE]),
    "h264 of which nothing is said": (
        "pion-watch",
        both(
            only(0),
            swap("BUNDLE 0 1", "BUNDLE 0"),
            without(r"a=fmtp.*"),
            swap(r"^(m=video 9 \S+).*", r"\1 102\r"),
            without(r"a=(rtpmap|rtcp-fb):(?!102).*"),
        ),
        "/whep",
        [TAKEN],
    ),
    "numbers that are none": ("safari-send", swap("minptime=10", "minptime=ten"), "/whip", [TAKEN, INACTIVE]),
    "fmtp of formats that are not there": (
        "obs",
        swap("^a=fmtp:111", "a=fmtp:99 apt=98\r\na=fmtp:111"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "extensions with words behind": (
        "pion-watch",
        swap(r"^(a=extmap:1)( \S+)", r"\1/sendonly\2 more words"),
        "/whep",
        [TAKEN, TAKEN],
    ),
    # protocols
    "RTP/SAVPF": ("obs", swap("UDP/TLS/RTP/SAVPF", "RTP/SAVPF"), "/whip", [TAKEN, INACTIVE]),
    "TCP/DTLS/RTP/SAVPF": ("obs", swap("UDP/TLS/RTP/SAVPF", "TCP/DTLS/RTP/SAVPF"), "/whip", [TAKEN, INACTIVE]),
    # candidates that cannot be used, and are no mistake
    "tcp": (
        "obs",
        swap("^(a=end-of)", r"a=candidate:9 1 tcp 1 192.0.2.7 9 typ host tcptype active\r\n\1"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "rtcp apart": (
        "obs",
        swap("^(a=end-of)", r"a=candidate:9 2 udp 1 192.0.2.7 9 typ host\r\n\1"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "a domain name": (
        "obs",
        swap("^(a=end-of)", r"a=candidate:9 1 udp 1 host.example.org 9 typ host\r\n\1"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
    "multicast": (
        "obs",
        swap("^(a=end-of)", r"a=candidate:9 1 udp 1 224.0.0.251 5353 typ host\r\n\1"),
        "/whip",
        [TAKEN, INACTIVE],
    ),
}


def test_each_shape_is_answered_as_it_should_be():
    """In one server, as each takes but a moment."""

    async def test(place):
        wrong = {}
        for name, (base, change, path, expected) in SHAPES.items():
            text = change(OFFERS[base])
            assert change is same or text != OFFERS[base], f"{name}: nothing was changed"
            status, answer = await place.ask(path, text)
            try:
                assert status == 201, answer
                assert check_answer(text, answer) == expected
            except AssertionError as error:
                wrong[name] = str(error)
        assert not wrong, "\n\n".join(f"{name}: {error}" for name, error in wrong.items())

    assert len(SHAPES) > 60
    at(test)


@pytest.mark.parametrize("name", sorted(OFFERS))
def test_what_aiortc_gets_is_what_it_would_write(name):
    """Its own parser takes it, and forgets nothing of it."""
    from aiortc import sdp

    read = read_offer(OFFERS[name])
    kept = [part for part in read.parts if not part.fault and part.codecs]
    text = take(read, kept)
    parsed = sdp.SessionDescription.parse(text)
    assert [media.rtp.muxId for media in parsed.media] == [part.mid for part in kept]
    for media, part in zip(parsed.media, kept, strict=True):
        assert media.rtcp_mux and media.direction == direction(*sections(OFFERS[name])[part.index + 1 : part.index + 2])
        assert media.ice.usernameFragment and media.ice.password and media.dtls.fingerprints
        assert not media.ice_candidates


REFUSALS = {
    "without rtcp-mux": (without("a=rtcp-mux"), 422, "rtcp-mux"),
    "without ice": (without("a=ice-ufrag.*"), 422, "ICE"),
    "without dtls": (without("a=fingerprint.*"), 422, "DTLS"),
    "holdconn": (swap("actpass", "holdconn"), 422, "DTLS"),
    "sdes": (both(swap("UDP/TLS/RTP/SAVPF", "RTP/SAVP"), without("a=fingerprint.*")), 422, "DTLS"),
    "everything rejected": (REJECT, 422, "sendonly"),
    "two of a name": (swap("^a=mid:1", "a=mid:0"), 422, "mid"),
    "a name with a blank": (swap("^a=mid:1", "a=mid:1 2"), 422, "mid"),
    "seventeen parts": (lambda text: text + "m=text 0 RTP/AVP 98\r\n" * 15, 422, "16"),
    "nothing": (lambda text: "", 400, "SDP"),
    "no parts": (lambda text: sections(text)[0], 400, "SDP"),
    "no m= line": (swap("^m=audio.*", "m=audio\r"), 400, "line 13"),
    "a port too high": (swap("^m=audio [0-9]+", "m=audio 70000"), 400, "line 13"),
    "a line without a letter": (swap("^a=mid:0", "mid"), 400, "line 15"),
    "a candidate's port is 0": (swap("192.0.2.7 52311 typ", "192.0.2.7 0 typ"), 400, "port 0"),
    "a candidate's port is 70000": (swap("192.0.2.7 52311 typ", "192.0.2.7 70000 typ"), 400, "port 70000"),
    "a candidate's address is 0.0.0.0": (swap("192.0.2.7 52311 typ", "0.0.0.0 52311 typ"), 400, "0.0.0.0"),
    "a candidate's address is ::": (swap("192.0.2.7 52311 typ", ":: 52311 typ"), 400, "::"),
    "a candidate's address is none": (swap("192.0.2.7 52311 typ", "1.2.3 52311 typ"), 400, "address"),
    "a candidate is cut off": (swap("192.0.2.7 52311 typ host", "192.0.2.7"), 400, "candidate"),
    "an odd setup": (swap("actpass", "perhaps"), 400, "a=setup"),
    "an odd codec": (swap("^a=rtpmap:111 .*", "a=rtpmap:opus\r"), 400, "rtpmap"),
}


def test_what_cannot_be_taken_is_refused_in_a_line_that_says_why():
    async def test(place):
        for name, (change, status, said) in REFUSALS.items():
            got, answer = await place.ask("/whip", change(OFFERS["obs"]))
            assert (got, answer.count("\n")) == (status, 1), (name, got, answer)
            assert said in answer and len(answer) < 250, (name, answer)

    at(test)


# --- connected


async def connect(place: Place, change: Change, restore: Change = same) -> None:
    """A peer speaks after its offer was changed on its way, and its answer was changed back."""
    peer = RTCPeerConnection(ALONE)
    peer.addTransceiver(Tone(), "sendonly")
    told = await offer(peer)
    text = change(told)
    status, _, answer = await post(place.client, f"{place.url}/whip", text)
    assert status == 201, answer
    assert check_answer(text, answer) == [TAKEN]
    await peer.setRemoteDescription(RTCSessionDescription(restore(answer), "answer"))
    heard = len(place.ears)
    await until(lambda: len(place.ears) > heard and place.ears[-1].count > 2000)
    await peer.close()
    await until(lambda: place.speakers.count == 0)


CONNECTED: dict[str, tuple[Change, Change]] = {
    "no a=rtcp": (NO_RTCP, same),
    "no direction": (without("a=sendonly"), same),
    "direction at session level": (at_session("sendonly"), same),
    "transport at session level": (TRANSPORT, same),
    "no candidates": (without("a=(candidate|end-of).*"), same),
    "setup active": (swap("actpass", "active"), same),
    "setup passive": (swap("actpass", "passive"), same),
    "no name": (
        both(without("a=mid.*"), without("a=group.*")),
        swap("^a=sendrecv|^a=recvonly", "a=mid:0\r\na=recvonly"),
    ),
    "lf": (lambda text: text.replace("\r\n", "\n"), same),
    "only tcp and multicast": (swap(r"^(a=candidate:\S+ 1) udp (\d+) \S+", r"\1 udp \2 239.1.2.3"), same),
}


def test_peers_of_many_shapes_are_heard():
    async def test(place):
        for name, (change, restore) in CONNECTED.items():
            try:
                await connect(place, change, restore)
            except AssertionError as error:
                raise AssertionError(name) from error

    at(test)


# --- candidates


@pytest.mark.parametrize(
    "address",
    [
        "224.0.0.251",
        "239.255.255.250",
        "255.255.255.255",
        "240.0.0.1",
        "0.1.2.3",
        "ff02::fb",
        "::ffff:224.0.0.1",
        "fe80::1%eth0",
    ],
)
def test_what_is_no_address_of_one_host_is_not_probed(address):
    assert read_candidate(f"1 1 udp 1 {address} 9 typ host") is None


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.255", "fd00::1", "2001:db8::1", "0B7a-1.local"])
def test_addresses_of_hosts_and_names_are(address):
    found = read_candidate(f"1 1 UDP 1 {address} 9 typ srflx raddr 0.0.0.0 rport 0 generation 0")
    assert (found.ip, found.port, found.protocol, found.type) == (address, 9, "udp", "srflx")


class Probed:
    """What our sockets would have sent to."""

    def __init__(self, monkeypatch):
        import aioice.ice

        self.to = set()
        monkeypatch.setattr(aioice.ice.StunProtocol, "send_stun", lambda protocol, message, to: self.to.add(to))


def test_one_peer_has_few_addresses_probed(monkeypatch):
    """In its offer and by PATCH together; the same host at many ports, and many hosts."""
    probed = Probed(monkeypatch)
    base = without("a=(candidate|end-of).*")(OFFERS["obs"])

    def many(told):
        return "".join(f"a=candidate:{i} 1 udp {i + 1} {ip} {port} typ host\r\n" for i, (ip, port) in enumerate(told))

    async def test(place):
        for path, hosts, ports in (("/whip", 200, 1), ("/whip", 1, 200)):
            told = [(f"192.0.2.{host + 1}", 1000 + port) for host in range(hosts) for port in range(ports)]
            text = base.replace("a=ssrc:3029481722 cname", many(told[: len(told) // 2]) + "a=ssrc:3029481722 cname", 1)
            probed.to.clear()
            status, headers, _ = await post(place.client, place.url + path, text)
            assert status == 201
            url = place.url + headers["Location"]
            kind = {"Content-Type": sessions.FRAGMENT}
            for start in range(len(told) // 2, len(told), 20):
                fragment = "a=mid:0\r\n" + many(told[start : start + 20])
                async with place.client.patch(url, data=fragment, headers=kind) as response:
                    assert response.status == 204
            await until(lambda: len(probed.to) >= min(MAX_CANDIDATES, MAX_HOSTS), 5)
            await asyncio.sleep(0.5)
            assert len({host for host, _ in probed.to}) <= MAX_HOSTS
            assert len(probed.to) == (MAX_HOSTS if hosts > 1 else MAX_CANDIDATES)
            for bad in ("192.0.2.1 0 typ host", "192.0.2.1 70000 typ host", "0.0.0.0 9 typ host", ":: 9 typ host"):
                fragment = f"a=mid:0\r\na=candidate:1 1 udp 1 {bad}\r\n"
                async with place.client.patch(url, data=fragment, headers=kind) as response:
                    assert response.status == 400 and (await response.text()).count("\n") == 1
            async with place.client.delete(url) as response:
                assert response.status == 200

    at(test)


def test_an_offers_multicast_is_not_probed(monkeypatch):
    probed = Probed(monkeypatch)

    async def test(place):
        text = swap("192.0.2.7 52311 typ", "224.0.0.251 5353 typ")(OFFERS["obs"])
        text = swap("^(a=end-of)", r"a=candidate:9 1 udp 9 192.0.2.9 9 typ host\r\n\1")(text)
        assert (await post(place.client, f"{place.url}/whip", text))[0] == 201
        await until(lambda: probed.to)
        await asyncio.sleep(0.2)
        assert probed.to == {("192.0.2.9", 9)}

    at(test)


def test_nothing_of_a_fragment_with_a_mistake_is_taken(monkeypatch):
    probed = Probed(monkeypatch)

    async def test(place):
        status, headers, _ = await post(
            place.client, f"{place.url}/whip", without("a=(candidate|end-of).*")(OFFERS["obs"])
        )
        assert status == 201
        lines = ["a=mid:0", "a=candidate:1 1 udp 1 192.0.2.3 9 typ host", "a=candidate:1 1 udp 1 192.0.2.3 0 typ host"]
        kind = {"Content-Type": sessions.FRAGMENT}
        async with place.client.patch(
            place.url + headers["Location"], data="\r\n".join(lines), headers=kind
        ) as response:
            assert response.status == 400 and "line 3" in await response.text()
        await asyncio.sleep(0.2)
        assert not probed.to

    at(test)


# --- whatever comes

WORDS = [
    "",
    "0",
    "1",
    "65536",
    "-1",
    "99999999999999999999",
    "é",
    "\x00",
    "a" * 300,
    "::",
    "0.0.0.0",
    "%",
    "*",
    "=",
    ":",
]
LINES = [
    "a=sendrecv",
    "a=inactive",
    "a=bundle-only",
    "a=mid:0",
    "a=rtcp-mux",
    "a=group:BUNDLE 0 1 2",
    "a=setup:active",
    "m=video 0 x 0",
    "a=candidate:1 1 udp 1 192.0.2.1 9 typ host",
    "a=ice-ufrag:abcd",
    "a=rtpmap:0 PCMU/8000",
    "a=fmtp:96 apt=96",
    "a=rtpmap:97 rtx/90000",
    "a=ice-lite",
]


@st.composite
def mangled(draw):
    """An offer with a few of its lines left out, moved, repeated, twisted or put elsewhere."""
    lines = OFFERS[draw(st.sampled_from(sorted(OFFERS)))].split("\r\n")
    for _ in range(draw(st.integers(1, 6))):
        index = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["drop", "repeat", "move", "word", "cut", "insert", "text"]))
        if kind == "drop":
            del lines[index : index + draw(st.integers(1, 5))]
        elif kind == "repeat":
            lines.insert(index, lines[index])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(index))
        elif kind == "word":
            words = re.split(r"([ :;=/])", lines[index])
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS))
            lines[index] = "".join(words)
        elif kind == "cut":
            lines[index] = lines[index][: draw(st.integers(0, 30))]
        elif kind == "insert":
            lines.insert(index, draw(st.sampled_from(LINES)))
        else:
            lines[index] = lines[index][:2] + draw(st.text(max_size=20))
        lines = lines or [""]
    return "\r\n".join(lines)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(mangled())
def test_any_text_is_an_offer_or_refused(text):
    try:
        read = read_offer(text)
    except Refusal as refusal:
        assert refusal.status in (400, 422) and str(refusal).isprintable()
        return
    from aiortc import sdp

    kept = [part for part in read.parts if not part.fault and part.codecs]
    if kept:
        assert len(sdp.SessionDescription.parse(take(read, kept)).media) == len(kept)


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from([*WORDS, "udp", "typ", "host", "9", "192.0.2.1", "a.local"]), max_size=12).map(" ".join)
)
def test_any_text_is_a_candidate_or_none_or_a_mistake(text):
    try:
        found = read_candidate(text)
    except ValueError as error:
        assert str(error).isprintable()
        return
    assert found is None or (0 < found.port < 65536 and found.component == 1 and found.protocol == "udp")


def test_whatever_is_sent_gets_an_answer_or_a_refusal_and_nothing_stays(caplog):
    """Over HTTP: never a 500, a traceback or a session that was not asked for; each answer is valid for its offer."""

    async def test(place):
        loop = asyncio.get_running_loop()
        errors = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        texts, paths = [], []

        @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
        @given(mangled(), st.sampled_from(["/whip", "/whep"]))
        def collect(text, path):
            texts.append(text)
            paths.append(path)

        collect()
        statuses = set()
        for text, path in zip(texts, paths, strict=True):
            status, answer = await place.ask(path, text)
            assert status in (201, 400, 406, 413, 422), (status, text)
            statuses.add(status)
            if status == 201:
                assert answer.count("m=") == len(read_description(text).sections)
            else:
                assert answer.count("\n") == 1 and answer[:-1].isprintable()
        assert {201, 400} <= statuses and not errors

    at(test)
    assert not [record for record in caplog.records if record.exc_info]


# --- ICE servers


class Stun(asyncio.DatagramProtocol):
    """A STUN server that says of everybody that they are at 203.0.113.7:7007."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        asked = stun.parse_message(data)
        told = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, asked.transaction_id)
        told.attributes["XOR-MAPPED-ADDRESS"] = ("203.0.113.7", 7007)
        self.transport.sendto(bytes(told), address)


def test_the_head_asks_the_first_stun_server_that_it_can():
    """Not the one that is named by an IPv6 address, which aioice cannot."""

    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Stun, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        broadcast = Broadcast(WebRtcOptions(ice_servers=("stun:[::1]:9", f"stun:127.0.0.1:{port}", "stun:127.0.0.1:9")))
        async with Head([broadcast]).live(), serving(*whep_routes(broadcast)) as (client, url):
            status, headers, text = await post(client, f"{url}/whep", OFFERS["pion-watch"])
            assert status == 201 and "203.0.113.7 7007 typ srflx" in text
            assert len(headers.getall("Link")) == 3
            await broadcast.aclose()
        transport.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "url, expected",
    [
        ("turn:[::1]:3478", (("::1", 3478), "udp", False)),
        ("turn:example.org?transport=tcp", (("example.org", 3478), "tcp", False)),
        ("turns:example.org", (("example.org", 5349), "tcp", True)),
    ],
)
def test_a_turn_server_is_asked_with_user_and_password_apart(url, expected, monkeypatch):
    """What aioice is told. coturn itself is no part of the tests, as Debian starts it where it is installed."""
    asked = []

    async def relayed(**told):
        asked.append(told)
        raise OSError("nobody is there")

    monkeypatch.setattr("aioice.ice.relayed_candidate", relayed)
    user = "1700000000:bob"
    options = WebRtcOptions(ice_servers=(url,), turn_username=user, turn_password="s3cr@t")

    async def main():
        broadcast = Broadcast(options)
        async with Head([broadcast]).live(), serving(*whep_routes(broadcast)) as (client, address):
            assert (await post(client, f"{address}/whep", OFFERS["pion-watch"]))[0] == 201
            await broadcast.aclose()

    asyncio.run(main())
    (told,) = asked
    assert (told["turn_server"], told["turn_transport"], told["turn_ssl"]) == expected
    assert (told["turn_username"], told["turn_password"]) == (user, "s3cr@t")
