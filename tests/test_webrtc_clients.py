"""Clients that others wrote, over real HTTP: libdatachannel, which OBS speaks WHIP with, GStreamer, and FFmpeg."""

import asyncio
import contextlib
import datetime
import json
import logging
import re
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from browsing import HERE, needs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from webrtc_peers import Head, listeners, serving, until

from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.whep import whep_routes
from transports.webrtc.whip import Speakers, whip_routes

TONE = 440


@pytest.fixture(scope="module")
def packets(tmp_path_factory) -> Path:
    """A second of a tone in Opus, packets of 20 ms, each after its length."""
    codec = av.CodecContext.create("libopus", "w")
    codec.sample_rate, codec.layout, codec.format = 48_000, "stereo", "s16"
    codec.open()
    at = np.arange(48_000)
    sound = np.repeat((8000 * np.sin(2 * np.pi * TONE * at / 48_000)).astype(np.int16), 2).reshape(1, -1)
    found = []
    for start in range(0, 48_000, 960):
        frame = av.AudioFrame.from_ndarray(sound[:, 2 * start : 2 * (start + 960)], "s16", "stereo")
        frame.sample_rate, frame.pts = 48_000, start
        found += [bytes(packet) for packet in codec.encode(frame)]
    path = tmp_path_factory.mktemp("opus") / "tone"
    path.write_bytes(b"".join(struct.pack(">H", len(packet)) + packet for packet in found))
    return path


@dataclass
class Client:
    """A program of others, and what it told so far: lines of JSON, or of text."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def read(self) -> None:
        async for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace"))

    def told(self, name: str) -> list:
        """The values under a name of all lines of JSON so far."""
        objects = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [each[name] for each in objects if name in each]

    def has_media(self) -> bool:
        """Whether it received something of every part."""
        counts = self.told("counts")
        return bool(counts) and all(count > 20 for count in counts[-1].values())

    async def waits(self, condition) -> None:
        try:
            await until(lambda: condition() or self.process.returncode is not None, 20)
            assert condition()
        except AssertionError:
            raise AssertionError("".join(self.lines)) from None


@contextlib.asynccontextmanager
async def running(*command: object) -> AsyncIterator[Client]:
    """It is asked to end by the end of its input."""
    pipe, both = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*map(str, command), stdin=pipe, stdout=pipe, stderr=both)
    client = Client(process)
    reading = asyncio.ensure_future(client.read())
    try:
        yield client
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 5)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


@contextlib.asynccontextmanager
async def place():
    """(broadcast, speakers, what each speaker said, URL) of both endpoints beside a live head."""
    ears, listen = listeners()
    options = WebRtcOptions()
    broadcast, speakers = Broadcast(options), Speakers(options, listen)
    routes = [*whep_routes(broadcast), *whip_routes(speakers)]
    async with Head([broadcast]).live(), serving(*routes) as (_, url):
        try:
            yield broadcast, speakers, ears, url
        finally:
            await broadcast.aclose()
            await speakers.aclose()


def pitch(chunks: list[np.ndarray], rate: int) -> float:
    """The loudest frequency of the last half second."""
    samples = np.concatenate([chunk if chunk.ndim == 1 else chunk.mean(1) for chunk in chunks])[-rate // 2 :]
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def sections(answer: str) -> list[str]:
    return re.split(r"(?m)^(?=m=)", answer)[1:]


@pytest.mark.parametrize("order", ["audio,H264", "H264,audio", "audio,H265", "AV1,audio", "audio"])
def test_libdatachannel_speaks(packets, order):
    """As in OBS: Opus and H.264, sendonly; also with pictures that cannot be taken, before and after the sound."""
    needs("node", "clients")

    async def main():
        async with place() as (_, speakers, ears, url):
            script = HERE / "datachannel.js"
            async with running("node", script, "whip", f"{url}/whip", packets, order) as client:
                await client.waits(lambda: ears and ears[0].count > 48_000)
                assert client.told("status") == [201]
                assert speakers.count == 1
            assert client.told("deleted") == [200], client.lines
            await until(lambda: ears[0].left and speakers.count == 0)
            assert ears[0].rates == {48_000}
            assert pitch(ears[0].chunks, 48_000) == pytest.approx(TONE, abs=5)
            for name, part in zip(order.split(","), sections(client.told("text")[0]), strict=True):
                refused, inactive = part.split()[1] == "0", "a=inactive" in part
                # AV1 leads the bundle here
                known = {"audio": (False, False), "H264": (False, True), "AV1": (False, True), "H265": (True, True)}
                assert (refused, inactive) == known[name]

    asyncio.run(main())


@pytest.mark.parametrize("order", ["H264,audio", "audio,VP8"])
def test_libdatachannel_watches(packets, order):
    needs("node", "clients")

    async def main():
        async with place() as (broadcast, _, _, url):
            async with running("node", HERE / "datachannel.js", "whep", f"{url}/whep", packets, order) as client:
                await client.waits(client.has_media)
                assert broadcast.viewers == 1
            assert client.told("deleted") == [200], client.lines
            await until(lambda: broadcast.viewers == 0)

    asyncio.run(main())


@pytest.mark.parametrize("setup, codecs", [("actpass", ("VP8", "OPUS")), ("passive", ("OPUS", "H264"))])
def test_gstreamer_watches(setup, codecs):
    """webrtcbin, in Debian's Python. Its certificate is of RSA."""
    needs("gstreamer")

    async def main():
        async with place() as (broadcast, _, _, url):
            async with running(
                "/usr/bin/python3", HERE / "gstreamer_watch.py", f"{url}/whep", setup, *codecs
            ) as client:
                await client.waits(client.has_media)
                assert broadcast.viewers == 1
            assert client.process.returncode == 0, client.lines

    asyncio.run(main())


def certificate(curve: ec.EllipticCurve, into: Path) -> tuple[Path, Path]:
    """(certificate, key) as PEM files."""
    key, name = ec.generate_private_key(curve), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    now = datetime.datetime.now(datetime.UTC)
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    (into / "certificate").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    (into / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return into / "certificate", into / "key"


def test_ffmpeg_speaks(tmp_path):
    """It offers no candidates, and to be the DTLS server."""

    async def main():
        async with place() as (_, speakers, ears, url):
            files = certificate(ec.SECP256R1(), tmp_path)
            async with running(sys.executable, HERE / "ffmpeg_speak.py", f"{url}/whip", TONE, *files) as client:
                await client.waits(lambda: ears and ears[0].count > 48_000)
            assert client.process.returncode == 0, client.lines
            await until(lambda: ears[0].left and speakers.count == 0)
            assert ears[0].rates == {48_000}
            assert pitch(ears[0].chunks, 48_000) == pytest.approx(TONE, abs=5)

    asyncio.run(main())


def test_a_peer_whose_certificate_cannot_be_met_is_told_of(tmp_path, caplog):
    """P-224, which FFmpeg takes by itself where it has GnuTLS, and OpenSSL refuses."""
    caplog.set_level(logging.INFO, "transports")

    async def main():
        async with place() as (_, speakers, ears, url):
            files = certificate(ec.SECP224R1(), tmp_path)
            async with running(sys.executable, HERE / "ffmpeg_speak.py", f"{url}/whip", TONE, *files):
                await until(lambda: [each for each in caplog.records if "a peer could not" in each.message])
                await until(lambda: speakers.count == 0)
            assert not ears

    asyncio.run(main())
    (told,) = [each.message for each in caplog.records if "a peer could not" in each.message]
    assert told.endswith("its DTLS and ours do not agree, perhaps on the kind of its certificate")
