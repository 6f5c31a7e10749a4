"""A viewer that is a process of its own, so that it can be stopped and killed: python lone_viewer.py http://HOST/whep

Says "pictures N" a few times a second, and "gone" when the head has left.
"""

import asyncio
import sys

from aiohttp import ClientSession
from webrtc_peers import Viewer


class Counting(list):
    """Counts what is appended, and keeps nothing."""

    total = 0

    def append(self, _: object) -> None:
        self.total += 1


async def main(url: str) -> None:
    async with ClientSession() as client:
        viewer = Viewer(client, url, "vp8", pictures=Counting(), voice=Counting())
        await viewer.watch()
        while viewer.peer.connectionState == "connected":
            print(f"pictures {viewer.pictures.total}", flush=True)
            await asyncio.sleep(0.2)
        print("gone", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
