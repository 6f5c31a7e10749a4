"""Names in the queries of requests, refused where a route does not know them."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from aiohttp import web

from transports.queries import unknown_name


def strict(routes: Iterable[web.RouteDef], known: Mapping[str, Collection[str]]) -> list[web.RouteDef]:
    """Routes that refuse a request whose query has a name that they do not know. known: the names of each path that has
    any. Not for those of a standard, whose clients may add names of their own."""

    def only(route: web.RouteDef) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if wrong := unknown_name(request.query, known.get(route.path, ())):
                raise web.HTTPBadRequest(text=wrong)
            return await route.handler(request)

        return handle

    return [web.RouteDef(each.method, each.path, only(each), each.kwargs) for each in routes]
