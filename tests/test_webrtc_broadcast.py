"""What viewers get of the head: the right pictures at the right times, keyframes, one clock, and no harm to others."""

import asyncio
import contextlib
import itertools
import struct
import time

import av
import numpy as np
import pytest
from aiortc import RTCRtpSender
from aiortc.rtp import RTCP_PSFB_FIR, RtcpPsfbPacket, pack_rtcp_packet
from webrtc_peers import RATE, Dated, Head, Viewer, click, clicks, flash, flashes, flat, serving, until, watching

from transports.media import MediaFormat, TransportError
from transports.webrtc.broadcast import KEYFRAME_SECONDS, MAX_WAITING, Broadcast, PacketTrack
from transports.webrtc.encoders import VideoEncoder, VoiceEncoder, to_i420, video_time
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.rtcp import RESENT_AT_ONCE, RESENT_PER_SECOND, Resending
from transports.webrtc.thinning import Thinning
from transports.webrtc.whep import whep_routes

CODECS = ["vp8", "h264"]


def run(test, head=None, options=None, **more):
    """Run `test(head, broadcast, client, url of the endpoint)` beside a live head."""

    async def main():
        broadcast = Broadcast(options or WebRtcOptions())
        live = Head([broadcast], **more)
        async with live.live(), serving(*whep_routes(broadcast)) as (client, url):
            try:
                await test(live, broadcast, client, f"{url}/whep")
            finally:
                await broadcast.aclose()

    asyncio.run(main())


def steps(frames):
    return [after.pts - before.pts for (_, before), (_, after) in itertools.pairwise(frames)]


def slowed(broadcast, seconds):
    """The encoder takes so much longer."""
    work = broadcast._pictures.run

    def slow(given):
        time.sleep(seconds)
        return work(given)

    broadcast._pictures.run = slow


def quadrants(index: int) -> np.ndarray:
    image = np.zeros((128, 128, 3), np.uint8)
    image[:64, :64], image[:64, 64:], image[64:, :64] = (200, 30, 30), (30, 180, 40), (40, 50, 200)
    image[64:, 64:] = 60 + index % 100
    return image


@pytest.mark.parametrize("codec", CODECS)
def test_a_viewer_sees_what_was_sent_at_its_time_and_hears_without_a_gap(codec):
    async def test(head, broadcast, client, url):
        async with watching(client, url, codec) as viewer:
            await until(lambda: len(viewer.pictures) > 60 and len(viewer.voice) > 60)
            assert all(step > 0 and step % 2000 == 0 for step in steps(viewer.pictures))
            assert set(steps(viewer.voice)) == {960}
            shown = viewer.pictures[-1][1].to_ndarray(format="rgb24")
            for place, colour in (((32, 32), (200, 30, 30)), ((32, 96), (30, 180, 40)), ((96, 32), (40, 50, 200))):
                assert np.abs(shown[place].astype(int) - colour).max() < 16
            # the picture says which one it is: its time must be that one's
            pictures = [frame for _, frame in viewer.pictures]
            levels = [int(frame.to_ndarray(format="rgb24")[96, 96, 0]) for frame in pictures]
            offsets = (np.array([frame.pts // 2000 for frame in pictures]) - levels) % 100
            assert np.mean(np.abs(offsets - np.median(offsets)) <= 3) > 0.9

    run(test, size=128, picture=quadrants)


def test_the_clock_ticks_2000_times_a_frame_and_never_drifts():
    assert [video_time(index, 45) for index in (0, 1, 2, 45, 45 * 86_400)] == [0, 2000, 4000, 90_000, 90_000 * 86_400]
    assert [video_time(index, 30) for index in (0, 1, 30)] == [0, 3000, 90_000]
    assert video_time(7 * 1001, 7) == 1001 * 90_000


def test_one_encoding_serves_all_and_nothing_is_encoded_for_nobody():
    async def test(head, broadcast, client, url):
        await until(lambda: head.index > 20)
        assert broadcast.figures()["frames_encoded"] == 0
        async with watching(client, url) as first, watching(client, url) as second:
            await until(lambda: min(len(first.pictures), len(second.pictures)) > 30)
            began, encoded = head.index, broadcast.counts.encoded
            await until(lambda: head.index >= began + 45)
            assert broadcast.counts.encoded - encoded <= head.index - began + 1
            assert len(broadcast._pictures._video) == 1
            async with watching(client, url, "h264") as third:
                await until(lambda: third.pictures)
                assert len(broadcast._pictures._video) == 2
        await until(lambda: broadcast.viewers == 0)
        await asyncio.sleep(0.1)
        encoded = broadcast.counts.encoded
        await asyncio.sleep(0.2)
        assert broadcast.counts.encoded == encoded

    run(test)


@pytest.mark.parametrize("codec", CODECS)
def test_who_joins_gets_a_keyframe_at_once(codec):
    async def test(head, broadcast, client, url):
        async with watching(client, url, codec) as first:
            await until(lambda: len(first.pictures) > 45)
            assert broadcast.counts.keyframes == 1, "none that nobody asked for"
            async with watching(client, url, codec) as second:
                began = head.index
                await until(lambda: len(second.pictures) > 1)
                assert head.index - began < 90, "long before one would come by itself"
                assert broadcast.counts.keyframes == 2
            assert max(steps(first.pictures)) < 45 * 2000, "the first one goes on"

    run(test)


@pytest.mark.parametrize("codec, kind", [("vp8", "pli"), ("h264", "pli"), ("vp8", "fir")])
def test_a_viewer_that_asks_gets_a_keyframe_within_a_second_and_no_more_than_that(codec, kind):
    async def test(head, broadcast, client, url):
        async with watching(client, url, codec) as viewer:
            await until(lambda: len(viewer.pictures) > 10)
            (receiver,) = [each for each in viewer.peer.getReceivers() if each.track.kind == "video"]
            (source,) = [each.source for each in receiver.getSynchronizationSources()]

            async def ask():
                if kind == "pli":
                    await receiver._send_rtcp_pli(source)
                else:  # RFC 5104 section 4.3.1: whom it concerns stands in the body
                    body = struct.pack("!LBxxx", source, 1)
                    await receiver._send_rtcp(RtcpPsfbPacket(fmt=RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=body))

            made = broadcast.counts.keyframes
            await ask()
            await until(lambda: broadcast.counts.keyframes == made + 1, 1.0)
            # a viewer that asks all the time is answered again and again, but does not have all frames as keyframes
            began = time.monotonic()
            while time.monotonic() < began + 2:
                await ask()
                await asyncio.sleep(0.02)
            assert 2 <= broadcast.counts.keyframes - made - 1 <= 4
            assert broadcast.counts.requests > 50

    run(test)


def test_lips_and_voice_are_together_by_sender_reports_however_slow_the_encoder_is():
    async def test(head, broadcast, client, url):
        slowed(broadcast, 0.012)
        async with watching(client, url) as viewer:
            rates = {"video": 90_000, "audio": 48_000}
            dated = {each.track.kind: Dated(each, rates[each.track.kind]) for each in viewer.peer.getReceivers()}
            await until(lambda: all(each.report for each in dated.values()))
            await until(lambda: len(flashes(viewer)) > 2 and len(clicks(viewer)) > 2)
            shown = [dated["video"].seconds(pts) for _, pts in flashes(viewer)]
            heard = [dated["audio"].seconds(pts) for _, pts in clicks(viewer)]
            offsets = [min((sound - picture for sound in heard), key=abs) for picture in shown[:2]]
            assert np.abs(offsets).max() < 0.005  # of the 0.045 that are allowed
            # and that common clock is the head's: the frame's time, by the wall
            wall = time.time() - time.monotonic() + 2_208_988_800
            due = broadcast._anchor + 15 / 45 + wall
            assert abs((shown[0] - due + 0.5) % 1 - 0.5) < 0.01

    run(test, size=64, picture=lambda index: flash(index, 64), voice=click)


def test_voice_leaves_near_its_picture_for_who_goes_by_arrival():
    """Without the network: when the packets of the same moment were handed out."""

    async def main():
        broadcast = Broadcast(WebRtcOptions())
        async with Head([broadcast]).live():
            viewer = broadcast.viewer("vp8", True)
            broadcast.join(viewer)
            slowed(broadcast, 0.01)
            came = {"video": [], "audio": []}

            async def take(track, clock):
                while True:
                    packet = await track.recv()
                    came[track.kind].append((time.monotonic() - packet.pts / clock, packet.pts))

            tasks = [asyncio.create_task(take(viewer.video, 90_000)), asyncio.create_task(take(viewer.voice, 48_000))]
            await until(lambda: len(came["video"]) > 45)
            for task in tasks:
                task.cancel()
            late = {kind: np.median([when for when, _ in each]) for kind, each in came.items()}
            assert abs(late["audio"] - late["video"]) < 0.045
            await broadcast.aclose()

    asyncio.run(main())


def test_a_slow_encoder_drops_pictures_and_keeps_time():
    async def test(head, broadcast, client, url):
        slowed(broadcast, 0.05)
        async with watching(client, url) as viewer:
            await until(lambda: len(viewer.pictures) > 12 and len(viewer.voice) > 40)
            assert broadcast.figures()["frames_dropped"] > 10
            assert all(step % 2000 == 0 for step in steps(viewer.pictures)) and max(steps(viewer.pictures)) > 2000
            assert set(steps(viewer.voice)) == {960}, "no voice is lost with the pictures"

    run(test)


def test_a_late_picture_stands_still_and_is_not_encoded_again():
    async def test(head, broadcast, client, url):
        async with watching(client, url) as viewer:
            await until(lambda: len(viewer.pictures) > 20)
            assert all(step % 4000 == 0 for step in steps(viewer.pictures[-10:]))
        async with watching(client, url) as second:  # whose keyframe may be asked for when there is no picture
            await until(lambda: second.pictures)

    run(test, picture=lambda index: flat(index % 200, 64) if index % 2 else None)


def test_a_viewer_that_the_system_cannot_send_to_is_cut_and_the_others_are_not():
    async def test(head, broadcast, client, url):
        async with watching(client, url) as good, watching(client, url) as bad:
            await until(lambda: len(good.pictures) > 5 and len(bad.pictures) > 5)
            stuck = broadcast._viewers[1]
            stuck.video.waiting = lambda: MAX_WAITING + 1
            began = head.index
            await until(lambda: head.index > began + 45)  # what was on its way has come
            began, had, seen = head.index, len(good.pictures), len(bad.pictures)
            await until(lambda: head.index > began + 60)
            assert stuck.video.count <= stuck.video.limit and broadcast.figures()["frames_thinned"] > 0
            assert len(good.pictures) - had > 20 and len(bad.pictures) - seen < 5
            assert broadcast._viewers[0].thinning.dropped == 0
            stuck.video.waiting = lambda: 0
            seen = len(bad.pictures)
            await until(lambda: len(bad.pictures) > seen + 20)  # it goes on, from a keyframe

    run(test)


def test_a_viewer_that_loses_much_gets_less_and_the_others_do_not():
    async def test(head, broadcast, client, url):
        rng = np.random.default_rng(0)
        # what fills the bitrate: noise that moves
        noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(16)]
        head.picture = lambda index: noise[index % 16]
        async with watching(client, url) as good, watching(client, url) as bad:
            await until(lambda: good.pictures and bad.pictures)
            (transport,) = {each.transport for each in bad.peer.getReceivers()}
            handle = transport._handle_rtp_data

            async def losing(data, arrival_time_ms):
                if rng.random() > 0.4:
                    await handle(data, arrival_time_ms=arrival_time_ms)

            transport._handle_rtp_data = losing
            await until(lambda: broadcast._viewers[1].thinning.allowance is not None, 15)
            had, began = len(good.pictures), head.index
            dropped = broadcast._viewers[1].thinning.dropped
            await until(lambda: head.index > began + 45)
            assert broadcast._viewers[1].thinning.dropped > dropped
            assert broadcast._viewers[0].thinning.dropped == 0 and len(good.pictures) - had > 10

    run(test)


def test_thinning_is_slow_to_begin_sends_whole_pieces_and_ends():
    thin = Thinning()
    assert not thin.admit(1000, False, 0.0) and thin.dropped == 0, "nothing to begin with before a keyframe"
    assert thin.admit(20_000, True, 0.0) and thin.admit(5_000, False, 0.02)
    thin.remb = 50_000.0
    for _ in range(20):
        thin.report(0.0, 2e6)
    assert thin.allowance is None, "an estimate alone thins nobody"
    thin.report(0.5, 2e6)
    assert thin.allowance is None, "nor does one bad second"
    thin.remb = 1.5e6
    thin.report(0.5, 2e6)
    assert thin.allowance == 1e6
    thin.report(0.3, 2e6)
    thin.report(0.3, 2e6)
    assert thin.allowance == 5e5
    thin.remb = 2e5
    thin.report(0.3, 2e6)
    thin.report(0.3, 2e6)
    assert thin.allowance == 2e5
    for _ in range(20):
        thin.report(0.9, 2e6)
    assert thin.allowance == 1e5, "never less"
    sent, now, began = 0, 10.0, thin.whole
    for _ in range(45 * 20):
        now += 1 / 45
        key = thin.affords(now) and not thin.whole
        taken = thin.admit(20_000 if key else 5_000, key, now)
        assert not (taken and not key and not began), "nothing that hangs on what was left out"
        began = taken and (began or key)
        sent += taken * (20_000 if key else 5_000) * 8
    assert 0.5e5 * 20 < sent < 1.6e5 * 20
    for _ in range(60):
        thin.report(0.0, 2e6)
    assert thin.allowance is None


@contextlib.asynccontextmanager
async def lone_viewer(codec):
    """(broadcast, its head, the one viewer): no network, and frames only from who sends them."""
    broadcast = Broadcast(WebRtcOptions())
    head = Head([broadcast])
    broadcast.open(head.form)
    viewer = broadcast.viewer(codec, True)
    broadcast.join(viewer)
    try:
        yield broadcast, head, viewer
    finally:
        await broadcast.aclose()


def test_an_interrupt_drops_what_waits():
    async def main():
        async with lone_viewer("vp8") as (broadcast, head, viewer):
            slowed(broadcast, 0.1)
            now = time.monotonic()
            for index in range(20):  # the first is being encoded, the others wait
                broadcast.send(head.frame(index, now))
            broadcast.interrupt()
            await until(lambda: not broadcast._busy)
            assert broadcast.counts.encoded == 1 and viewer.video.count <= 1, "only what was in work"
            assert viewer.voice.count == 0
            head.generation = 1
            for index in range(100, 103):
                broadcast.send(head.frame(index, now))
            await until(lambda: viewer.voice.count and not broadcast._busy)
            first = await viewer.voice.recv()
            assert first.pts > 100 * 48_000 / 45 - 960 - 400
            broadcast.interrupt()
            assert viewer.voice.count == 0

    asyncio.run(main())


def test_what_waits_for_a_viewer_is_bounded():
    async def main():
        async with lone_viewer("h264") as (broadcast, head, viewer):
            for index in range(300):  # nobody takes anything
                broadcast.send(head.frame(index, time.monotonic()))
                await asyncio.sleep(0.002)
            assert viewer.video.count <= viewer.video.limit <= 45 and viewer.voice.count <= viewer.voice.limit <= 50
        assert viewer.video.readyState == "ended"

    asyncio.run(main())


def test_lost_frames_leave_their_time():
    async def test(head, broadcast, client, url):
        async with watching(client, url) as viewer:
            await until(lambda: len(viewer.pictures) > 5 and len(viewer.voice) > 5)
            head.index += 9  # 0.2 s that nobody saw; their time passes
            await until(lambda: max(steps(viewer.pictures)) >= 18_000)
            await until(lambda: len(viewer.voice) > 40)
            assert set(steps(viewer.voice)) == {960}, "silence took the place of lost voice"

    run(test)


@pytest.mark.parametrize("codec", CODECS)
def test_the_bitrate_is_the_one_that_is_set(codec):
    rng = np.random.default_rng(1)
    large = [rng.integers(0, 255, (33, 33, 3), np.uint8).repeat(8, 0).repeat(8, 1)[:256, :256] for _ in range(9)]
    for bitrate in (500_000, 3_000_000):
        encoder = VideoEncoder(codec, 256, 256, 45, bitrate)
        sizes, keys = [], []
        for index in range(135):
            noise = rng.integers(0, 60, (256, 256, 3), np.uint8)
            for picture in encoder.encode(to_i420(large[index // 15] // 2 + noise), index, index == 100):
                assert picture.packet.pts == index * 2000
                sizes.append(picture.size)
                keys.append(picture.keyframe)
        assert 0.7 < 8 * sum(sizes) / 3 / bitrate < 1.3
        assert keys[0] and keys[100] and len(keys) == 135
        assert max(sizes) * 8 < bitrate / 3, "no picture, not even a keyframe, takes a third of a second to send"


def test_h264_is_of_the_profile_that_every_browser_has():
    picture = VideoEncoder("h264", 512, 512, 45, 2_000_000).encode(to_i420(flat(90, 512)), 0, True)[0]
    data = bytes(picture.packet)
    parameters = data[data.index(b"\x00\x00\x01\x67") + 4 :]
    assert parameters[0] == 66 and parameters[1] & 0x40, "constrained baseline (RFC 6184 section 8.1)"
    assert parameters[2] <= 31
    assert b"\x00\x00\x01\x68" in data and b"\x00\x00\x01\x65" in data, "a keyframe can be decoded by itself"


def decode_voice(packets):
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout, decoder.format = 48_000, "mono", "s16"
    made = np.zeros(48_000 * 3, np.float32)
    for packet in packets:
        for frame in decoder.decode(av.Packet(bytes(packet))):
            at = packet.pts
            made[max(0, at) : at + frame.samples] = frame.to_ndarray()[0][max(0, -at) :] / 32768
    return made


def test_voice_comes_out_where_it_went_in():
    encoder = VoiceEncoder(RATE)
    signal = np.where(np.arange(RATE * 2) >= RATE, 0.5 * np.sin(np.arange(RATE * 2)), 0).astype(np.float32)
    packets, at = [], 0
    for size in itertools.cycle((355, 356, 356)):
        packets += encoder.encode(at, signal[at : at + size])
        at += size
        if at >= len(signal):
            break
    assert {after.pts - before.pts for before, after in itertools.pairwise(packets)} == {960}
    begins = np.argmax(np.abs(decode_voice(packets)) > 0.1)
    # the look-ahead of 312 samples, by which a decoder is late, is in the packets' times
    assert abs(begins - 48_000) < 96


def test_voice_that_is_missing_is_silence_and_much_of_it_a_new_beginning():
    encoder, loud = VoiceEncoder(RATE), np.full(1600, 0.5, np.float32)
    first = encoder.encode(0, loud)
    second = encoder.encode(1600 + 800, loud)
    assert [packet.pts for packet in first + second] == [960 * n - 312 for n in range(5 + 7)]
    third = encoder.encode(RATE * 60, loud)
    assert third[0].pts == 60 * 48_000 - 312
    fourth = encoder.encode(RATE * 10, np.full(320, np.nan, np.float32))
    assert [packet.pts for packet in fourth] == [10 * 48_000 - 312]


@pytest.mark.parametrize("hushed", [False, True])
def test_voice_that_is_in_no_packet_yet_is_not_heard_after_an_interrupt(hushed):
    encoder, silence = VoiceEncoder(RATE), np.zeros(RATE, np.float32)
    packets = encoder.encode(0, silence)
    loud = 0.5 * np.sin(np.arange(300)).astype(np.float32)
    assert encoder.encode(len(silence), loud) == []  # less than a packet
    if hushed:
        encoder.hush()
    packets += encoder.encode(len(silence) + len(loud), silence)
    assert {after.pts - before.pts for before, after in itertools.pairwise(packets)} == {960}
    assert (np.abs(decode_voice(packets)).max() > 0.1) is not hushed


def test_what_aiortc_must_have_for_us_is_there():
    """transports/webrtc reaches into aiortc at these places; if one is gone, so is what hangs on it."""
    from aiortc import RTCDtlsTransport, RTCIceGatherer, RTCIceTransport, RTCRtpReceiver
    from aiortc.rtcdtlstransport import RtpRouter

    class Transport:
        state = "new"

    async def main():
        sender = RTCRtpSender("video", Transport())
        assert all(hasattr(sender, name) for name in ("_handle_rtcp_packet", "_send_rtcp", "_ssrc", "transport"))
        assert hasattr(RTCRtpReceiver("audio", Transport()), "_RTCRtpReceiver__jitter_buffer")
        assert hasattr(RtpRouter(), "register_sender")
        assert hasattr(RTCDtlsTransport, "_handle_rtp_data") and hasattr(RTCDtlsTransport, "_handle_rtcp_data")
        assert RTCIceTransport(RTCIceGatherer())._connection._protocols == []

    asyncio.run(main())


def test_packets_are_sent_once_more_as_often_as_a_viewer_needs_it_and_no_more():
    """What a report asks for twice comes once; beyond the allowance nothing comes until there is time for it."""
    resending = Resending()
    assert resending.admit([7, 8, 7, 9, 8], 0.0) == [7, 8, 9]
    assert resending.admit(range(5000), 0.0) == list(range(RESENT_AT_ONCE - 3))
    assert resending.admit([1], 0.0) == []
    assert resending.admit(range(5000), 0.1) == list(range(round(RESENT_PER_SECOND / 10)))
    assert resending.admit(range(5000), 1000.0) == list(range(RESENT_AT_ONCE))


def test_a_viewer_that_asks_for_everything_again_and_again_costs_nobody_else_anything():
    """Reports of 1200 bytes that ask for 5000 packets each, as one that is broken or means harm may send."""

    async def test(head, broadcast, client, url):
        async with watching(client, url) as viewer:
            await until(lambda: len(viewer.pictures) > 30)
            (session,) = broadcast.sessions._open.values()
            senders = [each for each in session.connection.getSenders() if each.track is not None]
            assert len(senders) == 2
            transport, sent = senders[0].transport, []
            send = transport._send_rtp

            async def counting(data):
                sent.append(data)
                await send(data)

            transport._send_rtp = counting
            for sender in senders:
                last = max(sender._RTCRtpSender__rtp_history.values(), key=lambda each: each.timestamp).sequence_number
                fci = b"".join(struct.pack("!HH", (last - at % 100) % 2**16, 0xFFFF) for at in range(300))
                report = pack_rtcp_packet(205, 1, struct.pack("!LL", 1, sender._ssrc) + fci)
                began, before = time.monotonic(), len(sent)
                for _ in range(20):
                    await transport._handle_rtcp_data(report)
                told = RESENT_AT_ONCE + RESENT_PER_SECOND * (time.monotonic() - began)
                assert 10 < len(sent) - before <= told + 20  # and what is new meanwhile

    run(test)


def test_the_system_says_how_much_waits():
    async def test(head, broadcast, client, url):
        async with watching(client, url) as viewer:
            await until(lambda: viewer.pictures)
            (protocol,) = [
                pair.protocol
                for session in broadcast.sessions._open.values()
                for pair in session.connection.getSenders()[0].transport.transport._connection._nominated.values()
            ]
            assert broadcast._viewers[0].video.waiting() == 0
            protocol.transport._buffer.append((b"x" * 1000, ("127.0.0.1", 9)))
            protocol.transport._buffer_size = 1000
            assert broadcast._viewers[0].video.waiting() > 0
            protocol.transport._buffer.clear()

    run(test)


def test_a_format_that_cannot_be_is_refused():
    with pytest.raises(TransportError, match="44100"):
        Broadcast(WebRtcOptions()).open(MediaFormat(64, 64, 45, 44_100))


def test_an_encoder_that_fails_is_told_and_begun_anew(monkeypatch):
    async def main():
        broadcast = Broadcast(WebRtcOptions())
        head = Head([broadcast])
        async with head.live():
            viewer = broadcast.viewer("vp8", True)
            broadcast.join(viewer)
            await until(lambda: broadcast.counts.encoded > 3)

            def fail(*_):
                raise av.FFmpegError(1, "no memory")

            with monkeypatch.context() as patch:
                patch.setattr(VideoEncoder, "encode", fail)
                await until(lambda: broadcast.check())
                assert "no memory" in broadcast.check() and "\n" not in broadcast.check()
            encoded = broadcast.counts.encoded
            await until(lambda: broadcast.counts.encoded > encoded + 3)
            assert broadcast.check() == ""
            await broadcast.aclose()

    asyncio.run(main())


def test_a_track_that_stops_lets_go_of_who_waits():
    async def main():
        track = PacketTrack("video", 90_000, 4)
        waiting = asyncio.create_task(track.recv())
        await asyncio.sleep(0)
        track.stop()
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        assert type(result).__name__ == "MediaStreamError"

    asyncio.run(main())


def test_figures_are_numbers():
    async def test(head, broadcast, client, url):
        empty = broadcast.figures()
        async with watching(client, url) as viewer:
            await until(lambda: len(viewer.pictures) > 20)
            figures = broadcast.figures()
        assert figures.keys() == empty.keys() and all(np.isfinite(list(figures.values())))
        assert figures["viewers"] == 1 and figures["bitrate"] > 0 and 0 < figures["encode_seconds_median"] < 1

    run(test)


def test_many_join_at_once():
    async def test(head, broadcast, client, url):
        viewers = [Viewer(client, url, CODECS[number % 2]) for number in range(8)]
        await asyncio.gather(*(viewer.watch() for viewer in viewers))
        await until(lambda: all(viewer.pictures and viewer.voice for viewer in viewers))
        lasted = (head.index + 1) / 45
        assert broadcast.counts.keyframes <= 2 * (lasted / KEYFRAME_SECONDS + 1)
        await asyncio.gather(*(viewer.leave() for viewer in viewers))
        await until(lambda: broadcast.viewers == 0)

    run(test)
