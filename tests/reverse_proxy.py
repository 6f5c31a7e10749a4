"""A reverse proxy that shows a server below a path, as nginx does it: `location /avatar/ { proxy_pass http://HOST/; }`.

It takes the path away on the way in and changes nothing on the way out. In a thread, for tests that wait in theirs."""

import asyncio
import threading

import aiohttp
from aiohttp import web
from yarl import URL

#: What is between two ends of a connection and not of a request (RFC 9110, section 7.6.1).
_HOPS = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}


class ReverseProxy:
    """address: below it the server is to be found. asked: the paths that were asked for, here."""

    def __init__(self, target: str, path: str = "/avatar", keep_host: bool = True) -> None:
        """target: "http://HOST:PORT". keep_host: the server is told the name by which the proxy was asked, as Caddy
        does; nginx tells its own."""
        self._target, self._path, self._keep_host = target, path, keep_host
        self.asked: list[str] = []
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> "ReverseProxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}{self._path}"
        async with aiohttp.ClientSession(auto_decompress=False) as self._client:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = request.rel_url.raw_path_qs
        self.asked.append(asked)
        if not asked.startswith(f"{self._path}/"):
            return web.Response(status=404, text="<h1>not ours</h1>", content_type="text/html")
        url = URL(self._target + asked.removeprefix(self._path), encoded=True)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOPS]
        if not self._keep_host:
            headers = [(name, value) for name, value in headers if name.lower() != "host"]
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._join(request, url, headers)
        body = await request.read()
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            back = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOPS]
            return web.Response(status=answer.status, headers=back, body=await answer.read())

    async def _join(self, request: web.Request, url: URL, headers: list) -> web.StreamResponse:
        own = [(name, value) for name, value in headers if not name.lower().startswith("sec-websocket")]
        async with self._client.ws_connect(url, headers=own) as there:
            here = web.WebSocketResponse()
            await here.prepare(request)

            async def hand_on(source, sink) -> None:
                async for message in source:
                    send = sink.send_bytes if message.type is aiohttp.WSMsgType.BINARY else sink.send_str
                    await send(message.data)
                await sink.close(code=source.close_code or 1000)

            await asyncio.gather(hand_on(there, here), hand_on(here, there))
            return here
