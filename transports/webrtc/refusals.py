"""A request that is refused."""


class Refusal(Exception):
    """A request that is refused. status: of HTTP; the message is one line; headers: more of the response."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
