"""The head to another server: the WHIP client against our own endpoint's rules and against servers that fail."""

import asyncio
import contextlib
import itertools
import re
import time

import pytest
from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from webrtc_peers import ALONE, Head, listeners, serving, until

from transports.media import MediaFormat, TransportError
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.publish import WhipOptions, WhipSink, create, retry_after
from transports.webrtc.whip import Speakers, whip_routes


class Studio:
    """A WHIP server that takes pictures too. script: what each POST gets, the last for all later ones: None is 201,
    else a function of the request."""

    def __init__(self, *script, location="/sessions/{}", change=lambda text: text):
        self.script, self.location, self.change = list(script) or [None], location, change
        self.requests, self.deleted, self.tokens = [], [], []
        self.peers: list[RTCPeerConnection] = []
        self.frames = {"audio": [], "video": []}
        self.tasks = []

    def routes(self):
        return [
            web.post("/whip", self.post),
            web.post("/moved", self.post),
            web.delete("/sessions/{name}", self.delete),
        ]

    async def post(self, request):
        self.requests.append((time.monotonic(), request.path))
        self.tokens.append(request.headers.get("Authorization"))
        act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if act is not None:
            return act(request)
        assert request.content_type == "application/sdp"
        peer = RTCPeerConnection(ALONE)
        self.peers.append(peer)
        peer.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.collect(track))))
        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        await peer.setLocalDescription()
        headers = {"Location": self.location.format(len(self.peers))}
        return web.Response(
            status=201, text=self.change(peer.localDescription.sdp), content_type="application/sdp", headers=headers
        )

    async def collect(self, track):
        with contextlib.suppress(MediaStreamError):
            while True:
                self.frames[track.kind].append(await track.recv())

    async def delete(self, request):
        self.deleted.append(request.match_info["name"])
        self.tokens.append(request.headers.get("Authorization"))
        return web.Response()

    async def close(self):
        for peer in self.peers:
            await peer.close()
        for task in self.tasks:  # a track that never began does not end
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def publishing(url, **options):
    sink = WhipSink(WhipOptions(url, **options), pause=0.05)
    async with Head([sink]).live():
        try:
            yield sink
        finally:
            await sink.aclose()


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@pytest.mark.parametrize("location", ["/sessions/{}", "sessions/{}", "http://{{host}}/sessions/{}"])
def test_a_server_gets_picture_and_voice_and_a_delete_at_the_end(codec, location):
    async def main():
        studio = Studio()
        async with serving(*studio.routes()) as (_, url):
            studio.location = location.replace("{{host}}", url.removeprefix("http://"))
            async with publishing(f"{url}/whip", codec=codec, token="secret") as sink:
                await until(lambda: min(map(len, studio.frames.values())) > 10)
                assert sink.connected and sink.check() == ""
            assert studio.deleted == ["1"]
            assert studio.tokens == ["Bearer secret"] * 2
            await studio.close()

    asyncio.run(main())


def at_session_level(text: str) -> str:
    """An answer with ICE, DTLS and the direction at session level."""
    head, *parts = re.split(r"(?m)^(?=m=)", text)
    shared = re.compile(r"(?m)^a=(?:ice-|fingerprint|setup|recvonly|candidate|end-of).*\r\n")
    told = "".join(line for line in shared.findall(parts[0]) if "candidate" not in line)
    kept = "".join(line for line in shared.findall(parts[0]) if "candidate:" in line)
    first, *rest = [shared.sub("", part) for part in parts]
    return head + told + first + kept + "".join(rest)


ANSWERS = {
    "no a=rtcp": lambda text: re.sub(r"a=rtcp:.*\r\n", "", text),
    "no direction": lambda text: text.replace("a=recvonly\r\n", ""),
    "at session level": at_session_level,
    "no names": lambda text: re.sub(r"a=mid:.*\r\n", "", text),
    "a name in c= and a=rtcp": lambda text: re.sub("IN IP4 0.0.0.0", "IN IP4 media.example.org", text),
    "odd candidates": lambda text: text.replace(
        "a=end-of", "a=candidate:1 1 udp 1 0.0.0.0 9 typ host\r\na=candidate:\r\na=end-of", 1
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_all_shapes_are_understood(name):
    async def main():
        studio = Studio(change=ANSWERS[name])
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip", codec="vp8") as sink:
            await until(lambda: min(map(len, studio.frames.values())) > 3)
            assert sink.connected and sink.check() == "" and sink.attempts == 1
            await studio.close()

    asyncio.run(main())


def refuse(kind: str):
    return lambda text: re.sub(rf"m={kind} \d+(.*\r\n)(?:[^m].*\r\n)*", rf"m={kind} 0\1a=inactive\r\n", text)


def test_a_voice_that_is_refused_leaves_the_picture():
    async def main():
        studio = Studio(change=refuse("audio"))
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip", codec="vp8") as sink:
            await until(lambda: len(studio.frames["video"]) > 3)
            assert sink.connected and not studio.frames["audio"]
            await studio.close()

    asyncio.run(main())


def test_a_picture_that_is_refused_is_told():
    async def main():
        studio = Studio(change=refuse("video"))
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip", codec="vp8") as sink:
            await until(sink.check)
            assert "the server refuses video" in sink.check() and "\n" not in sink.check()
            await studio.close()

    asyncio.run(main())


def test_our_own_endpoint_takes_it():
    async def main():
        ears, listen = listeners()
        speakers = Speakers(WebRtcOptions(), listen)
        async with serving(*whip_routes(speakers)) as (_, url):
            async with publishing(f"{url}/whip", codec="vp8"):
                await until(lambda: ears and ears[0].count > 9600)
            await until(lambda: speakers.count == 0 and ears[0].left == 1)
        assert ears[0].rates == {48_000}

    asyncio.run(main())


def refusal(status, **headers):
    return lambda request: web.Response(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_it_begins_anew_when_a_server_is_busy_or_broken_and_says_so():
    async def main():
        broken = web.Response  # 200 without a session
        studio = Studio(refusal(503, Retry_After="1"), refusal(401), lambda request: broken(text="hello"), None)
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip") as sink:
            await until(lambda: sink.check())
            assert "503" in sink.check() and "\n" not in sink.check()
            await until(lambda: sink.connected)
            assert sink.check() == "" and sink.attempts == 4
            waits = [after[0] - before[0] for before, after in itertools.pairwise(studio.requests)]
            assert waits[0] >= 1
            await studio.close()

    asyncio.run(main())


def test_it_begins_anew_when_the_peer_goes():
    async def main():
        studio = Studio()
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip") as sink:
            # both ends: a peer that goes while it still connects does not say so, and is missed only much later
            await until(lambda: sink.connected and studio.peers[0].connectionState == "connected")
            await studio.peers[0].close()
            await until(lambda: len(studio.peers) == 2 and sink.connected)
            assert studio.deleted == ["1"]
            await studio.close()

    asyncio.run(main())


def test_a_server_that_is_not_there_is_told_in_one_line_and_close_is_quick():
    async def main():
        sink = WhipSink(WhipOptions("http://127.0.0.1:9/whip", token="secret"), pause=0.05)
        async with Head([sink]).live():
            await until(lambda: sink.attempts > 2)
            line = sink.check()
            assert line.startswith("whip: 127.0.0.1:9: ") and "\n" not in line and "secret" not in line
            await asyncio.wait_for(asyncio.to_thread(sink.close), 3)

    asyncio.run(main())


@pytest.mark.parametrize("status", [307, 308])
def test_redirects_are_followed_but_not_with_the_token_to_another_origin(status):
    async def main():
        other = Studio()
        async with serving(*other.routes()) as (_, elsewhere):
            away = Studio(refusal(status, Location=f"{elsewhere}/moved"))
            async with serving(*away.routes()) as (_, url):
                async with publishing(f"{url}/whip", token="secret") as sink:
                    await until(lambda: sink.connected)
                assert other.requests[0][1] == "/moved" and away.tokens == ["Bearer secret"]
                assert set(other.tokens) == {None} and other.deleted == ["1"]
                await other.close()
        near = Studio(refusal(status, Location="moved"), None)
        async with serving(*near.routes()) as (_, url):
            async with publishing(f"{url}/whip", token="secret") as sink:
                await until(lambda: sink.connected)
            assert set(near.tokens) == {"Bearer secret"}
            await near.close()

    asyncio.run(main())


def test_redirects_in_a_circle_end():
    async def main():
        studio = Studio(refusal(307, Location="/whip"))
        async with serving(*studio.routes()) as (_, url), publishing(f"{url}/whip") as sink:
            await until(lambda: "redirects" in sink.check())

    asyncio.run(main())


def test_retry_after_in_both_forms():
    assert retry_after("7", 0) == 7
    assert retry_after("Thu, 01 Jan 1970 00:02:00 GMT", 30) == 90
    senseless = [None, "", "soon", "-5", "Thu, 01 Jan 1970 00:02:00 GMT"]
    assert [retry_after(value, 10**10) for value in senseless] == [0] * 5
    assert retry_after("99999999", 0) == 600


@pytest.mark.parametrize(
    "options, said",
    [
        ({"url": ""}, "url"),
        ({"url": "ftp://host/whip"}, "url"),
        ({"url": "http://host/whip", "token": "a\nb"}, "token"),
        ({"url": "http://host/whip", "codec": "av1"}, "av1"),
        ({"url": "http://host/whip", "bitrate": 5}, "bitrate"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, said):
    with pytest.raises(TransportError, match=said) as refused:
        create(options)
    assert "\n" not in str(refused.value)


def test_a_sink_that_was_never_sent_anything_closes():
    sink = create({"url": "http://host/whip", "ice_servers": []})
    sink.open(MediaFormat(64, 64, 45, 16_000))
    sink.close()
