"""The head to viewers over WHEP: real peers, real codecs, real HTTP."""

import asyncio
import itertools

import pytest
from webrtc_peers import Head, serving, until, watching

from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.whep import whep_routes


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_a_viewer_sees_every_frame_at_its_time_and_hears_the_voice(codec):
    async def main():
        broadcast = Broadcast(WebRtcOptions())
        async with Head([broadcast]).live(), serving(*whep_routes(broadcast)) as (client, url):
            async with watching(client, f"{url}/whep", codec) as viewer:
                await until(lambda: len(viewer.pictures) > 45 and len(viewer.voice) > 45)
            await broadcast.aclose()
        ticks = [frame.pts for _, frame in viewer.pictures]
        steps = [after - before for before, after in itertools.pairwise(ticks)]
        assert all(step % 2000 == 0 for step in steps) and steps.count(2000) >= 0.8 * len(steps)
        ticks = [frame.pts for _, frame in viewer.voice]
        assert {after - before for before, after in itertools.pairwise(ticks)} == {960}

    asyncio.run(main())
