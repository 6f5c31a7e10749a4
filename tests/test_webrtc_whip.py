"""A voice over WHIP: real peers, real codecs, real HTTP."""

import asyncio
import contextlib
import logging
import re
import socket
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from aioice import stun
from aiortc import AudioStreamTrack, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from webrtc_peers import ALONE, Head, Heard, listeners, offer, post, serving, until, watching

from transports.webrtc import listening
from transports.webrtc.broadcast import Broadcast
from transports.webrtc.listening import GapFiller, hear, samples_of
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.packets import MAX_SOURCES
from transports.webrtc.whep import whep_routes
from transports.webrtc.whip import Speakers, whip_routes


class Tone(AudioStreamTrack):
    """440 Hz in chunks of 20 ms, left only; `lost` are numbers of chunks that never come."""

    def __init__(self, rate=48_000, lost=()):
        super().__init__()
        self.rate, self.lost, self.number = rate, lost, 0

    async def recv(self):
        await asyncio.sleep(0.018)
        while self.number in self.lost:
            self.number += 1
        count = self.rate // 50
        at = self.number * count + np.arange(count)
        left = (8000 * np.sin(2 * np.pi * 440 * at / self.rate)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.stack([left, 0 * left], 1).reshape(1, -1), "s16", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = self.rate, int(at[0]), Fraction(1, self.rate)
        self.number += 1
        return frame


def prefer(peer, kind, *names):
    for transceiver in peer.getTransceivers():
        if transceiver.kind == kind:
            known = transceiver.sender.getCapabilities(kind).codecs
            transceiver.setCodecPreferences([each for each in known if each.name.lower() in names])


@contextlib.asynccontextmanager
async def studio(speakers=4):
    """(Speakers, what each heard, client, url of the endpoint)."""
    ears, listen = listeners()
    guests = Speakers(WebRtcOptions(speakers=speakers), listen)
    async with serving(*whip_routes(guests)) as (client, url):
        try:
            yield guests, ears, client, f"{url}/whip"
        finally:
            await guests.aclose()


async def speak(client, url, *tracks, change=lambda text: text, codec=""):
    """(peer, where its session is, the answer)."""
    peer = RTCPeerConnection(ALONE)
    for track in tracks:
        peer.addTrack(track)
    for transceiver in peer.getTransceivers():
        transceiver.direction = "sendonly"
    if codec:
        prefer(peer, "audio", codec)
    status, headers, text = await post(client, url, change(await offer(peer)))
    assert status == 201, text
    await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
    return peer, headers["Location"], text


def pitch(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate / len(samples)


@pytest.mark.parametrize("codec, rate", [("opus", 48_000), ("g722", 16_000), ("pcmu", 8_000)])
def test_a_voice_is_heard_as_it_was_sent_until_the_session_is_deleted(codec, rate):
    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, location, _ = await speak(client, url, Tone(), codec=codec)
            await until(lambda: ears and ears[0].count > rate // 2)
            assert speakers.count == 1
            async with client.delete(url.replace("/whip", location)) as response:
                assert response.status == 200
            await until(lambda: ears[0].left)
            assert (speakers.count, ears[0].finished, ears[0].left) == (0, 1, 1)
            async with client.delete(url.replace("/whip", location)) as response:
                assert response.status == 404
            await until(lambda: peer.connectionState == "closed")  # it was told
            await peer.close()
        assert ears[0].rates == {rate} and len(ears) == 1
        chunks = [chunk if chunk.ndim == 1 else chunk.mean(1) for chunk in ears[0].chunks]
        assert all(chunk.dtype == np.int16 for chunk in ears[0].chunks)
        assert pitch(np.concatenate(chunks)[rate // 10 :], rate) == pytest.approx(440, abs=10)

    asyncio.run(main())


ODD_PACKETS = {
    "a level of three bytes": (0x90, b"\xbe\xde\x00\x01\x12abc"),
    "a level of none, in the long form": (0x90, b"\x10\x00\x00\x01\x01\x00\x00\x00"),
    "a name in no encoding": (0x90, b"\xbe\xde\x00\x01\x21\xff\xfe\x00"),
    "extensions longer than the packet": (0x90, b"\xbe\xde\xff\xff"),
    "more padding than there is": (0xA0, b"\xff"),
    "nothing": (0x80, b""),
}


def test_packets_that_cannot_be_read_are_dropped_and_the_voice_goes_on(caplog):
    """Whatever comes behind the head of a packet, encrypted as it should be; and reports of nothing but noise."""

    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, _, _ = await speak(client, url, Tone())
            await until(lambda: ears and ears[0].count > 1000)
            sender = peer.getSenders()[0]
            payload = re.search(r"a=rtpmap:(\d+) opus", peer.remoteDescription.sdp)[1]
            for number, (first, rest) in enumerate(ODD_PACKETS.values()):
                head = struct.pack("!BBHLL", first, int(payload), number, 0, 12345)
                data = sender.transport._tx_srtp.protect(head + rest) if number != 3 else head + rest
                await sender.transport.transport._send(data)
            (session,) = speakers.sessions._open.values()
            transport = session.connection.getTransceivers()[0].receiver.transport
            for kind in range(200, 208):
                for size in (0, 4, 8, 20):
                    await transport._handle_rtcp_data(struct.pack("!BBH", 0x9F, kind, size // 4) + bytes(range(size)))
            count = ears[0].count
            await until(lambda: ears[0].count > count + 4000)
            assert (speakers.count, peer.connectionState) == (1, "connected")
            await peer.close()

    asyncio.run(main())
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_checks_that_cannot_be_read_are_dropped(caplog):
    """STUN with attributes of other lengths than they have, from anybody in the network, to all our addresses; and one
    of the peer's own without a priority, which it must have."""

    async def main():
        async with studio() as (_, ears, client, url):
            peer, _, text = await speak(client, url, Tone())
            own = re.search(r"a=candidate:\S+ 1 udp \d+ (\d[\d.]+) (\d+) typ host", text)
            assert own is not None
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for kind in (0x0006, 0x0009, 0x0020, 0x0024, 0x0025, 0x8028, 0x8029, 0x802A):
                    for size in (0, 4, 12):
                        head = struct.pack("!HHL12sHH", 1, 4 + size, stun.COOKIE, b"x" * 12, kind, size)
                        stranger.sendto(head + b"y" * size, (own[1], int(own[2])))
                check = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
                names = [re.search(r"a=ice-ufrag:(\S+)", each)[1] for each in (text, peer.localDescription.sdp)]
                check.attributes["USERNAME"] = ":".join(names)
                check.add_message_integrity(re.search(r"a=ice-pwd:(\S+)", text)[1].encode())
                stranger.sendto(bytes(check), (own[1], int(own[2])))
                stranger.settimeout(2)
                answered = await asyncio.to_thread(stranger.recv, 1500)
                assert stun.parse_message(answered).message_method == stun.Method.BINDING
            await until(lambda: ears and ears[0].count > 4000)
            await peer.close()

    asyncio.run(main())
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_voice_goes_on_when_its_sender_changes_its_source():
    """Goodbye for the old one comes in RTCP, as GStreamer sends it, also when it is the one that is heard."""

    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, _, _ = await speak(client, url, Tone())
            await until(lambda: ears and ears[0].count > 1000)
            sender = peer.getSenders()[0]
            for source in (sender._ssrc, 4242):
                payload = int(re.search(r"a=rtpmap:(\d+) opus", peer.remoteDescription.sdp)[1])
                await sender.transport._send_rtp(struct.pack("!BBHLL", 0x80, payload, 1, 0, 4242) + b"\xf8\xff\xfe")
                await sender.transport._send_rtp(struct.pack("!BBHL", 0x81, 203, 1, source))
            await asyncio.sleep(0.1)
            count = ears[0].count
            await until(lambda: ears[0].count > count + 8000)
            assert (len(ears), ears[0].left, speakers.count) == (1, 0, 1)
            await peer.close()
            await until(lambda: ears[0].left and speakers.count == 0)

    asyncio.run(main())


def test_an_endpoint_may_end_in_a_slash():
    async def main():
        async with studio() as (speakers, _, client, url):
            peer, location, _ = await speak(client, f"{url}/", Tone())
            assert location.startswith("/whip/") and speakers.count == 1
            async with client.delete(url.replace("/whip", location)) as response:
                assert response.status == 200
            async with client.options(f"{url}/") as response:
                assert response.headers["Accept-Post"] == "application/sdp"
            await peer.close()

    asyncio.run(main())


def test_a_peer_with_hundreds_of_sources_is_let_go_like_any_other():
    """Nothing of it is left once its session is deleted, and the voice that was there before them is heard on."""

    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, location, _ = await speak(client, url, Tone())
            await until(lambda: ears and ears[0].count > 1000)
            sender = peer.getSenders()[0]
            payload = int(re.search(r"a=rtpmap:(\d+) opus", peer.remoteDescription.sdp)[1])
            for source in range(400):
                await sender.transport._send_rtp(struct.pack("!BBHLL", 0x80, payload, 1, 0, source))
            (session,) = speakers.sessions._open.values()
            receiver = session.connection.getTransceivers()[0].receiver
            await asyncio.sleep(1.6)  # the next report on them
            assert 1 < len(receiver._RTCRtpReceiver__remote_streams) <= MAX_SOURCES
            count = ears[0].count
            await until(lambda: ears[0].count > count + 4000)
            async with client.delete(url.replace("/whip", location)) as response:
                assert response.status == 200
            assert session.connection.connectionState == "closed"
            await peer.close()

    asyncio.run(main())


def test_what_is_lost_on_the_way_becomes_silence_of_the_same_length():
    async def main():
        async with studio() as (_, ears, client, url):
            peer, _, _ = await speak(client, url, Tone())
            sender = peer.getSenders()[0]
            send, number = sender.transport._send_rtp, 0

            async def losing(data):
                nonlocal number
                number += 1
                if not 30 <= number < 33:  # three packets in a row
                    await send(data)

            sender.transport._send_rtp = losing
            await until(lambda: ears and ears[0].count > 60 * 960)
            heard = np.concatenate(ears[0].chunks)[:, 0].astype(float)
            await peer.close()
            await until(lambda: ears[0].left == 1)
        silent = np.flatnonzero(np.abs(heard[20 * 960 : 50 * 960]).reshape(-1, 480).max(1) == 0)
        # one of the three may have been a sender report
        assert len(silent) in (4, 6) and len(silent) == silent[-1] - silent[0] + 1

    asyncio.run(main())


def test_gaps_are_filled_up_to_a_second_and_never_backwards():
    filler, chunk = GapFiller(), np.ones((10, 2), np.int16)
    assert len(filler.fill(chunk, 100, Fraction(5))) == 10
    assert len(filler.fill(chunk, 100, Fraction(51, 10))) == 10
    filled = filler.fill(chunk, 100, Fraction(55, 10))
    assert filled.shape == (40, 2) and not filled[:30].any() and filled[30:].all()
    assert len(filler.fill(chunk, 100, Fraction(50))) == 10  # silent for longer
    assert len(filler.fill(chunk, 100, Fraction(20))) == 10  # begun anew
    assert len(filler.fill(chunk, 100, None)) == 10
    assert filler.filled == 30


@pytest.mark.parametrize("format, layout", [("s16", "mono"), ("s16p", "stereo"), ("flt", "stereo"), ("fltp", "mono")])
def test_samples_of_any_layout(format, layout):
    channels = 1 if layout == "mono" else 2
    values = np.arange(8 * channels).reshape(8, channels)
    kind = np.float32 if "flt" in format else np.int16
    array = values.T if format.endswith("p") else values.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(array, kind), format, layout)
    assert np.array_equal(samples_of(frame), values) and samples_of(frame).dtype == kind


def test_a_track_is_read_to_its_end_whatever_the_listener_says():
    class Deaf(Heard):
        def deliver(self, samples, rate):
            super().deliver(samples, rate)
            return False

    async def main():
        track, deaf = Tone(), Deaf()
        task = asyncio.create_task(hear(track, deaf))
        await until(lambda: len(deaf.chunks) > 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (deaf.finished, deaf.left) == (1, 1)

    asyncio.run(main())


def test_a_speaker_that_closes_is_gone():
    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, _, _ = await speak(client, url, Tone())
            await until(lambda: ears and ears[0].count)
            await peer.close()
            await until(lambda: speakers.count == 0 and ears[0].left == 1)

    asyncio.run(main())


def test_a_speaker_whose_packets_stop_lets_others_speak_and_is_heard_again(monkeypatch):
    """Its session goes on: that a peer is gone shows later."""
    monkeypatch.setattr(listening, "LOST_SECONDS", 0.3)

    async def main():
        async with studio() as (speakers, ears, client, url):
            peer, _, _ = await speak(client, url, Tone())
            await until(lambda: ears and ears[0].count > 10)
            assert ears[0].left == 0
            sender = peer.getSenders()[0]
            send, lost = sender.transport._send_rtp, True

            async def losing(data):
                if not lost:
                    await send(data)

            sender.transport._send_rtp = losing
            await until(lambda: ears[0].left == 1)
            assert ears[0].finished == 1 and speakers.count == 1
            before, lost = ears[0].count, False
            await until(lambda: ears[0].count > before + 10)
            assert speakers.count == 1 and len(ears) == 1
            await peer.close()
            await until(lambda: speakers.count == 0)

    asyncio.run(main())


def test_pictures_as_obs_sends_them_are_answered_as_inactive():
    async def main():
        async with studio() as (_, ears, client, url):
            peer, _, text = await speak(client, url, VideoStreamTrack(), Tone())
            await until(lambda: ears and ears[0].count)
            assert "a=inactive" in text.partition("m=video")[2].partition("m=")[0]
            await peer.close()

    asyncio.run(main())


def test_pictures_without_a_codec_in_common_are_inactive_where_they_lead_the_bundle():
    """The candidates of a bundle are told in its first part, which is the one without a codec here."""

    def led(text):
        head, audio = text.split("m=audio")
        told = [line for line in audio.splitlines() if line.startswith(("a=candidate", "a=end-of"))]
        audio = "\r\n".join(line for line in audio.splitlines() if line not in told) + "\r\n"
        common = [line for line in audio.splitlines() if line.startswith(("a=ice", "a=fingerprint", "a=setup"))]
        first = ["m=video 9 UDP/TLS/RTP/SAVPF 99", "c=IN IP4 0.0.0.0", "a=sendonly", "a=mid:v", "a=rtcp-mux"]
        video = "\r\n".join([*first, "a=rtpmap:99 H265/90000", *common, *told]) + "\r\n"
        return head.replace("BUNDLE 0", "BUNDLE v 0") + video + "m=audio" + audio

    async def main():
        async with studio() as (_, ears, client, url):
            peer = RTCPeerConnection(ALONE)
            peer.addTransceiver(Tone(), "sendonly")
            status, _, text = await post(client, url, led(await offer(peer)))
            assert status == 201 and "a=group:BUNDLE v 0\r\n" in text
            video, audio = text.partition("m=video")[2].split("m=audio")
            assert not video.startswith(" 0 ") and "a=inactive" in video and "a=rtpmap:99 H265/90000" in video
            assert "a=mid:v" in video and "a=mid:0" in audio and "a=recvonly" in audio
            # aiortc's client did not offer it; browsers can read it
            text = text.replace("m=video" + video, "").replace("BUNDLE v 0", "BUNDLE 0")
            await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
            await until(lambda: ears and ears[0].count > 4800)
            await peer.close()

    asyncio.run(main())


def test_a_viewer_speaks_on_its_own_connection_if_that_is_wanted():
    async def main():
        ears, listen = listeners()
        broadcast = Broadcast(WebRtcOptions())
        async with Head([broadcast]).live():
            for routes, hears in ((whep_routes(broadcast, listen), True), (whep_routes(broadcast), False)):
                async with serving(*routes) as (client, url):
                    peer, pictures = RTCPeerConnection(ALONE), []
                    peer.addTransceiver("video", "recvonly")
                    peer.addTransceiver(Tone(), "sendrecv")
                    peer.on("track", lambda track, into=pictures: into.append(track))
                    status, _, text = await post(client, f"{url}/whep", await offer(peer))
                    assert status == 201
                    assert ("a=sendrecv" in text) == hears
                    await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
                    for track in pictures:
                        await track.recv()
                    if hears:
                        await until(lambda: ears and ears[0].count > 4800)
                    await peer.close()
                    await until(lambda: broadcast.viewers == 0)
            assert len(ears) == 1 and ears[0].left == 1
            async with serving(*whep_routes(broadcast, listen)) as (client, url), watching(client, f"{url}/whep"):
                pass  # one that only watches has no ear
            assert len(ears) == 1
            await broadcast.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "change, status, said",
    [
        (lambda text: text.replace("opus", "speex").replace("PCM", "PCX").replace("G722", "G729"), 406, "opus"),
        (lambda text: text.replace("a=sendonly", "a=recvonly"), 422, "sendonly"),
        (lambda text: text.replace("a=sendonly", "a=inactive"), 422, "sendonly"),
    ],
)
def test_an_offer_without_a_voice_is_refused(change, status, said):
    async def main():
        async with studio() as (speakers, _, client, url):
            peer = RTCPeerConnection(ALONE)
            peer.addTransceiver(Tone(), "sendonly")
            got, _, text = await post(client, url, change(await offer(peer)))
            assert got == status and said in text and text.count("\n") == 1
            assert speakers.count == 0
            await peer.close()

    asyncio.run(main())


def test_a_speaker_can_tell_which_one_it_is():
    """By the ETag that its session was made with, while it is there."""

    async def main():
        async with studio() as (speakers, ears, client, url):
            tags = []
            for count in (1, 2):
                peer = RTCPeerConnection(ALONE)
                peer.addTrack(Tone())
                _, headers, text = await post(client, url, await offer(peer))
                await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
                await until(lambda count=count: len(ears) == count)
                tags.append((headers["ETag"], peer))
            assert [speakers.etag(ear) for ear in ears] == [tag for tag, _ in tags]
            assert tags[0][0] != tags[1][0] and speakers.etag(None) is None
            await tags[0][1].close()
            await until(lambda: ears[0].left)
            assert [speakers.etag(ear) for ear in ears] == [None, tags[1][0]]
            await tags[1][1].close()

    asyncio.run(main())


def test_no_more_speakers_than_there_are_places():
    async def main():
        async with studio(speakers=1) as (_, ears, client, url):
            first, _, _ = await speak(client, url, Tone())
            second = RTCPeerConnection(ALONE)
            second.addTrack(Tone())
            text = await offer(second)
            status, headers, _ = await post(client, url, text)
            assert status == 503 and int(headers["Retry-After"]) > 0
            # one that goes before its own handshake is over cannot say so
            await until(lambda: ears and first.connectionState == "connected")
            await first.close()
            await until(lambda: ears[0].left)
            assert (await post(client, url, text))[0] == 201
            await second.close()

    asyncio.run(main())
