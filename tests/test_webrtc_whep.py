"""WHEP and what it has in common with WHIP, over real HTTP: what is answered and refused, and that nothing stays."""

import asyncio
import gc
import gzip
import os
import re
import threading

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from webrtc_peers import ALONE, Head, Viewer, offer, post, serving, until, watching

from transports.media import TransportError
from transports.webrtc import sessions
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.sessions import Session
from transports.webrtc.whep import whep_routes


def run(test, options=None, **server):
    """Run `test(broadcast, client, url of the endpoint)` beside a live head."""

    async def main():
        broadcast = Broadcast(options or WebRtcOptions())
        async with Head([broadcast]).live(), serving(*whep_routes(broadcast, **server)) as (client, url):
            try:
                await test(broadcast, client, f"{url}/whep")
            finally:
                await broadcast.aclose()

    asyncio.run(main())


async def wish(*kinds, change=lambda text: text):
    """An offer to watch, from a peer that is not needed any more."""
    peer = RTCPeerConnection(ALONE)
    for kind in kinds or ("video", "audio"):
        peer.addTransceiver(kind, "recvonly")
    text = change(await offer(peer))
    await peer.close()
    return text


def test_the_answer_has_what_the_drafts_ask():
    async def test(broadcast, client, url):
        status, headers, text = await post(client, url, await wish())
        assert status == 201 and headers["Content-Type"].startswith("application/sdp")
        assert re.fullmatch(r"/whep/[\w-]{20,}", headers["Location"])
        assert re.fullmatch('"[0-9a-f]+"', headers["ETag"])
        assert headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"
        assert headers.getall("Link") == [
            '<stun:127.0.0.1:9>; rel="ice-server"',
            '<turn:127.0.0.1:9>; rel="ice-server"; username="1:m\\"e"; credential="p@ss"; credential-type="password"',
        ]
        assert text.count("a=sendonly") == 2 and "a=candidate" in text
        kinds = re.findall(r"(?m)^a=msid:(\S+)", text)
        assert len(kinds) == 2 and len(set(kinds)) == 1, "one stream, so that a browser keeps lips and voice together"

    servers = "stun:127.0.0.1:9", "turn:127.0.0.1:9"
    options = WebRtcOptions(ice_servers=servers, turn_username='1:m"e', turn_password="p@ss")
    with pytest.MonkeyPatch.context() as patch:  # nobody is at these addresses, which takes seconds to find out
        patch.setattr(Session, "gather", lambda session: session.connection.setLocalDescription())
        run(test, options)


def test_a_session_ends_by_delete_and_its_peer_is_told():
    async def test(broadcast, client, url):
        viewer = Viewer(client, url)
        await viewer.watch()
        session = url.replace("/whep", viewer.location)
        async with client.delete(session) as response:
            assert response.status == 200
        assert (broadcast.viewers, len(broadcast.sessions)) == (0, 0)
        await until(lambda: viewer.peer.connectionState == "closed")
        for method in ("delete", "patch"):
            async with client.request(method, session) as response:
                assert response.status == 404 and (await response.text()).count("\n") == 1
        await viewer.leave()

    run(test)


def test_a_viewer_that_closes_is_gone():
    async def test(broadcast, client, url):
        async with watching(client, url):
            await until(lambda: broadcast.viewers == 1)
        await until(lambda: broadcast.viewers == 0 and len(broadcast.sessions) == 0)

    run(test)


def test_a_viewer_that_vanishes_is_found_out(monkeypatch):
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.05)

    async def test(broadcast, client, url):
        viewer = Viewer(client, url)
        await viewer.watch()
        ice = viewer.peer.getReceivers()[0].transport.transport._connection
        for protocol in ice._protocols:
            protocol.transport.abort()  # as if it were unplugged: nothing is sent any more
        await until(lambda: broadcast.viewers == 0 and len(broadcast.sessions) == 0, 20)
        await viewer.leave()

    run(test)


def test_an_offer_whose_peer_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr(sessions, "CONNECT_SECONDS", 0.3)

    async def test(broadcast, client, url):
        text = re.sub(r"a=candidate.*\r\n|a=end-of-candidates\r\n", "", await wish())
        assert (await post(client, url, text))[0] == 201
        assert (broadcast.viewers, len(broadcast.sessions)) == (0, 1)
        await until(lambda: len(broadcast.sessions) == 0)

    run(test)


def test_candidates_may_come_later():
    async def test(broadcast, client, url):
        peer = RTCPeerConnection(ALONE)
        peer.addTransceiver("video", "recvonly")
        text = await offer(peer)
        told = re.findall(r"(?m)^a=candidate.*$", text)
        ufrag = re.search(r"a=ice-ufrag:.*", text)[0]
        bare = re.sub(r"a=candidate.*\r\n|a=end-of-candidates\r\n", "", text)
        status, headers, answer = await post(client, url, bare)
        assert status == 201
        session, etag = url.replace("/whep", headers["Location"]), headers["ETag"]
        # without the server's candidates the peer cannot come to it: only what it tells by PATCH can connect them
        answer = re.sub(r"a=candidate.*\r\n|a=end-of-candidates\r\n", "", answer)
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        lines = [ufrag.strip(), "m=video 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", *map(str.strip, told)]
        fragment = "\r\n".join([*lines, "a=end-of-candidates", ""])

        async def patch(body, kind="application/trickle-ice-sdpfrag", **headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            async with client.patch(session, data=body, headers={"Content-Type": kind} | headers) as response:
                return response.status, await response.text()

        assert (await patch(fragment, "application/sdp"))[0] == 415
        assert (await patch(fragment, If_Match='"other"'))[0] == 412
        assert (await patch(fragment, If_Match="*"))[0] == 422  # an ICE restart
        assert (await patch("a=ice-ufrag:new\r\na=ice-pwd:new\r\n", If_Match=etag))[0] == 422
        assert (await patch(ufrag + "\r\na=mid:0\r\na=candidate:nonsense\r\n"))[0] == 400
        assert await patch(fragment, If_Match=etag) == (204, "")
        await until(lambda: broadcast.viewers == 1)
        await peer.close()

    run(test)


def test_options_and_other_methods():
    async def test(broadcast, client, url):
        async with client.options(url) as response:
            assert response.status == 204 and response.headers["Accept-Post"] == "application/sdp"
            assert response.headers["Allow"] == "OPTIONS, POST"
        async with client.options(f"{url}/any") as response:
            assert response.status == 204 and response.headers["Allow"] == "DELETE, OPTIONS, PATCH"
        for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE"):
            async with client.request(method, url) as response:
                assert response.status == 405, method
        for method in ("GET", "HEAD", "PUT", "POST"):
            async with client.request(method, f"{url}/any") as response:
                assert response.status == 405, method

    run(test)


def without(pattern):
    return lambda text: re.sub(pattern, "", text)


@pytest.mark.parametrize(
    "change, status, said",
    [
        (lambda text: "", 400, "SDP"),
        (lambda text: "hello", 400, "SDP"),
        (lambda text: "v=0\r\n", 400, "SDP"),
        (lambda text: text.replace("a=rtpmap:", "a=rtpmap:x"), 400, "SDP"),
        (lambda text: re.sub(r"m=video \d+", "m=video -", text), 400, "SDP"),
        (lambda text: text.replace("a=setup:actpass", "a=setup:perhaps"), 400, "SDP"),
        (lambda text: text.replace("a=candidate:", "a=candidate:x "), 400, "SDP"),
        (lambda text: text + text.partition("m=video")[1] + text.partition("m=video")[2], 422, "mid"),
        (without(r"a=ice-ufrag:.*\r\n"), 422, "ICE"),
        (without(r"a=ice-pwd:.*\r\n"), 422, "ICE"),
        (without(r"a=setup:.*\r\n"), 422, "DTLS"),
        (without(r"a=fingerprint:.*\r\n"), 422, "DTLS"),
        (lambda text: text.replace("a=recvonly", "a=sendonly"), 422, "recvonly"),
        (lambda text: text.replace("a=recvonly", "a=inactive"), 422, "recvonly"),
        (lambda text: text.replace("VP8", "VP9").replace("H264", "AV1"), 406, "VP8 or H264"),
        (lambda text: text.replace("m=video", "m=image").replace("m=audio", "m=text"), 422, "recvonly"),
        (lambda text: text + "a=x:" + "y" * 70_000, 413, "65536"),
    ],
)
def test_an_offer_that_cannot_be_taken_is_refused_in_one_line(change, status, said, caplog):
    async def test(broadcast, client, url):
        got, _, text = await post(client, url, await wish(change=change))
        assert got == status and said in text and text.count("\n") == 1 and len(text) < 200
        assert len(broadcast.sessions) == 0
        assert (await post(client, url, await wish()))[0] == 201, "the next one is served"

    run(test)
    assert not [record for record in caplog.records if record.exc_info]


def test_no_offer_makes_an_error_of_ours():
    """Lines of an offer are left out, twisted and repeated: the answer is 201 or a refusal, never a 500."""

    async def test(broadcast, client, url):
        lines = (await wish()).split("\r\n")
        for at in range(len(lines) - 1):
            for made in ([], [lines[at][:7]], [lines[at] + " 1"], [lines[at]] * 2):
                text = "\r\n".join(lines[:at] + made + lines[at + 1 :])
                status, headers, answer = await post(client, url, text)
                assert status in (201, 400, 406, 422), (status, made, lines[at])
                if status == 201:
                    await broadcast.sessions.get(headers["Location"].rpartition("/")[2]).end()
                else:
                    assert answer.count("\n") == 1
        assert len(broadcast.sessions) == 0

    run(test)


def test_other_bodies_are_refused(caplog):
    async def test(broadcast, client, url):
        text = await wish()
        for kind, status in (("text/plain", 415), ("application/json", 415), ("application/sdp", 400)):
            async with client.post(url, data=b"\xff\xfe", headers={"Content-Type": kind}) as response:
                assert response.status == status, kind
        async with client.post(url) as response:
            assert response.status == 415
        packed = {"Content-Type": "application/sdp", "Content-Encoding": "gzip"}
        async with client.post(url, data=b"not packed", headers=packed) as response:
            assert response.status == 400
        async with client.post(url, data=gzip.compress(b"v=0\r\n" * 10**6), headers=packed) as response:
            assert response.status == 413
        assert (await post(client, url, text, Accept="application/json"))[0] == 406
        assert (await post(client, url, text, Accept="application/sdp, text/plain"))[0] == 201

        async def endless():
            for _ in range(100):
                yield b"v=0\r\n" * 1000

        headers = {"Content-Type": "application/sdp"}
        async with client.post(url, data=endless(), headers=headers) as response:
            assert response.status == 413

    run(test)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(sessions, "BODY_SECONDS", 0.2)

    async def test(broadcast, client, url):
        async def forever():
            yield b"v=0\r\n"
            await asyncio.sleep(60)

        headers = {"Content-Type": "application/sdp"}
        async with client.post(url, data=forever(), headers=headers) as response:
            assert (response.status, await response.text()) == (408, "the body did not arrive within 0.2 s\n")
            assert response.headers["Connection"] == "close"

    run(test)


def test_no_more_viewers_than_there_are_places():
    async def test(broadcast, client, url):
        texts = [await wish() for _ in range(4)]
        came = await asyncio.gather(*(post(client, url, text) for text in texts))
        assert sorted(status for status, _, _ in came) == [201, 201, 503, 503]
        assert all("Retry-After" in headers for status, headers, _ in came if status == 503)
        assert {told for status, _, told in came if status == 503} == {"2 of 2 places are taken; try again later\n"}
        location = next(headers["Location"] for status, headers, _ in came if status == 201)
        async with client.delete(url.replace("/whep", location)):
            pass
        assert (await post(client, url, texts[0]))[0] == 201

    run(test, WebRtcOptions(viewers=2))


def test_a_head_that_does_not_run_has_no_viewers():
    async def main():
        broadcast = Broadcast(WebRtcOptions())
        async with serving(*whep_routes(broadcast)) as (client, url):
            status, headers, _ = await post(client, f"{url}/whep", await wish())
            assert status == 503 and "Retry-After" in headers
        await broadcast.aclose()

    asyncio.run(main())


def test_a_viewer_of_one_kind():
    async def test(broadcast, client, url):
        for kind in ("audio", "video"):
            async with watching(client, url, kinds=(kind,)) as viewer:
                await until(lambda viewer=viewer: viewer.voice or viewer.pictures)

    run(test)


def test_sound_without_opus_is_refused_alone():
    async def test(broadcast, client, url):
        status, _, text = await post(client, url, await wish(change=lambda text: text.replace("opus/", "speex/")))
        assert status == 201 and "m=audio 0 " in text and "m=video 0 " not in text
        assert (await post(client, url, await wish("audio", change=lambda text: text.replace("opus/", "x/"))))[0] == 406

    run(test)


def test_the_codec_is_the_one_preferred_here():
    async def test(broadcast, client, url):
        text = await wish("video")
        chosen = (await post(client, url, text))[2]
        assert "H264/90000" in chosen and "VP8/90000" not in chosen

    run(test, WebRtcOptions(codecs=("h264", "vp8")))

    async def other(broadcast, client, url):
        text = await wish("video", change=lambda text: text.replace("H264/90000", "AV1/90000"))
        assert (await post(client, url, text))[0] == 406

    run(other, WebRtcOptions(codecs=("h264",)))


def test_the_end_tells_all_viewers_and_lets_none_in():
    async def test(broadcast, client, url):
        viewers = [Viewer(client, url), Viewer(client, url, "h264")]
        for viewer in viewers:
            await viewer.watch()
        text = await wish()
        await asyncio.to_thread(broadcast.close)  # as sinks are closed
        for viewer in viewers:
            await until(lambda viewer=viewer: viewer.peer.connectionState == "closed")
            await viewer.leave()
        assert (await post(client, url, text))[0] == 503

    run(test)


def test_nothing_stays_of_viewers_that_come_and_go():
    async def test(broadcast, client, url):
        def held():
            gc.collect()
            peers = sum(isinstance(each, RTCPeerConnection) for each in gc.get_objects())
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), threading.active_count(), peers

        async def visit(codec, abrupt):
            viewer = Viewer(client, url, codec)
            await viewer.watch()
            await until(lambda: viewer.pictures)
            if abrupt:
                async with client.delete(url.replace("/whep", viewer.location)):
                    pass
            await viewer.leave()

        await visit("vp8", False)
        await visit("h264", True)
        await until(lambda: len(broadcast.sessions) == 0)
        await asyncio.sleep(0.1)
        before = held()
        for number in range(20):
            await visit(("vp8", "h264")[number % 2], number % 3 == 0)
        await until(lambda: len(broadcast.sessions) == 0)
        await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 5)
        assert broadcast.figures()["viewers"] == 0

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    run(test)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"codecs": ()}, "codecs"),
        ({"codecs": ("vp9",)}, "vp9"),
        ({"codecs": ("vp8", "vp8")}, "once"),
        ({"bitrate": 0}, "bitrate"),
        ({"ice_servers": ("stun.example.org",)}, "stun.example.org"),
        ({"ice_servers": ("turn:example.org:3478",)}, "turn_username and turn_password"),
        ({"ice_servers": ("turn:example.org:3478",), "turn_username": "me"}, "turn_username and turn_password"),
        ({"ice_servers": ("turn:me:secret@host",)}, "turn_username and turn_password beside it"),
        ({"ice_servers": ("turn:1700000000:bob:secret@host",)}, "give turn:HOST:PORT"),
        ({"ice_servers": ("turn:me:secret@[::1]:3478",)}, "give turn:HOST:PORT"),
        ({"ice_servers": ("stun://example.org:3478",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stuns:example.org",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:example.org:0",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:example.org:70000",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:[::g]:1",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:300.1.1.1:1",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:::1",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:example.org?transport=udp",)}, "has no .transport="),
        ({"ice_servers": ("turns:example.org?transport=udp",)}, "leave .transport=udp out"),
        ({"ice_servers": ("turn:example.org?transport=tls",)}, "give stun:HOST:PORT"),
        ({"ice_servers": ("stun:example.org",), "turn_password": "secret"}, "no TURN server"),
        ({"ice_servers": ("turn:a",), "turn_username": "a\nb", "turn_password": "secret"}, "turn_username: it"),
        ({"ice_servers": ("turn:a",), "turn_username": "a", "turn_password": "secret" * 100}, "turn_password: it is"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, said):
    with pytest.raises(TransportError, match=said) as refused:
        WebRtcOptions(**options)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)


def test_routes_stand_beside_others():
    async def main():
        broadcast = Broadcast(WebRtcOptions())
        routes = [*whep_routes(broadcast, path="/a/watch"), *whep_routes(broadcast)]
        async with Head([broadcast]).live(), serving(*routes) as (client, url):
            _, headers, _ = await post(client, f"{url}/a/watch", await wish())
            assert headers["Location"].startswith("/a/watch/")
            await broadcast.aclose()

    asyncio.run(main())
