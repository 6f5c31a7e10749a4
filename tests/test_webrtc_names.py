"""Browsers hide their addresses behind mDNS names; the responder of the network is a fake here, all else is real."""

import asyncio
import re
from types import SimpleNamespace

import aioice
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from webrtc_peers import ALONE, Head, offer, post, serving, until

from transports.webrtc.broadcast import Broadcast
from transports.webrtc.options import WebRtcOptions
from transports.webrtc.whep import whep_routes

NAME = "0b7a1b8e-90b2-4147-90ef-1c79f784bcbb.local"


@pytest.fixture
def responder(monkeypatch):
    """address: what every name stands for, once it is set."""
    shared = SimpleNamespace(address=None, known=asyncio.Event(), asked=[])

    async def resolve(name, timeout=None):
        shared.asked.append(name)
        await shared.known.wait()
        return shared.address

    async def protocol(_):
        return SimpleNamespace(resolve=resolve)

    monkeypatch.setattr(aioice.ice, "get_or_create_mdns_protocol", protocol)
    return shared


def hide(text: str) -> tuple[str, str]:
    """An offer as a browser makes it, and the address that it hides."""
    pattern = r"(a=candidate:\S+ \d \w+ \d+ )(\S+)( \d+ typ host)"
    found = next(each[2] for each in re.finditer(pattern, text) if ":" not in each[2])
    only = re.sub(r"a=candidate:(?!.* " + re.escape(found) + r" ).*\r\n", "", text)
    return re.sub(pattern, rf"\g<1>{NAME}\g<3>", only), found


def meet(responder, without_ours: bool):
    """Watch with a hidden address. without_ours: the viewer never learns the head's, and cannot make the first step."""

    async def main():
        broadcast = Broadcast(WebRtcOptions())
        async with Head([broadcast]).live(), serving(*whep_routes(broadcast)) as (client, url):
            peer = RTCPeerConnection(ALONE)
            peer.addTransceiver("video", "recvonly")
            hidden, address = hide(await offer(peer))
            status, _, text = await asyncio.wait_for(post(client, f"{url}/whep", hidden), 5)
            assert status == 201  # though the name is still being looked up
            if without_ours:
                text = re.sub(r"a=candidate.*\r\n|a=end-of-candidates\r\n", "", text)
            await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
            await until(lambda: responder.asked)
            if without_ours:
                responder.address = address
                responder.known.set()
            await until(lambda: broadcast.viewers == 1)
            await peer.close()
            await until(lambda: not len(broadcast.sessions))
            await broadcast.aclose()
        assert responder.asked == [NAME]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_nobody_waits_for_a_name_that_is_not_found(responder):
    meet(responder, without_ours=False)


def test_a_name_that_is_found_leads_to_its_peer(responder):
    meet(responder, without_ours=True)
