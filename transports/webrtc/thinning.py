"""How much of the stream one viewer is sent, when its way does not carry all of it.

All viewers of a codec see the same encoded stream, so nobody's poor network makes the picture worse for the others: the
bitrate never changes, and who cannot take it gets pieces of it, each from a keyframe on, as far as an allowance goes.
The voice is sent whole.

What counts is lost packets (receiver reports, RFC 3550). A viewer's own estimate (REMB) only says where the allowance
begins: alone it thins nobody, since it falls with every unsteady moment of a network that carries all.
"""

from dataclasses import dataclass

#: Parts of the packets lost: more than this is too much, less than that is well.
LOSSY, WELL = 0.1, 0.02
#: Reports (one a second or so) in a row before less is sent, and before more is.
PATIENCE, CONVALESCENCE = 2, 3
LEAST_BITRATE = 100_000.0
#: Seconds of an allowance that may be saved up.
SAVINGS = 1.0


@dataclass
class Thinning:
    """allowance: bits a second of video, None for all of it. whole: whether the next picture can be decoded there.
    begun: whether it had a keyframe; dropped: pictures that it was not sent since."""

    allowance: float | None = None
    remb: float | None = None
    whole: bool = False
    begun: bool = False
    dropped: int = 0
    _lossy: int = 0
    _well: int = 0
    _credit: float = 0.0
    _counted: float = 0.0

    def report(self, loss: float, bitrate: float) -> None:
        """loss: part of the packets lost since the last report; bitrate: bits a second of the whole stream."""
        self._lossy = self._lossy + 1 if loss > LOSSY else 0
        self._well = self._well + 1 if loss < WELL else 0
        if self._lossy >= PATIENCE:
            self._lossy = 0
            carried = bitrate if self.allowance is None else self.allowance
            estimate = carried if self.remb is None else self.remb
            self.allowance = max(LEAST_BITRATE, min(carried / 2, estimate))
        elif self._well >= CONVALESCENCE and self.allowance is not None:
            self._well = 0
            self.allowance = None if self.allowance * 1.5 >= bitrate else self.allowance * 1.5

    def admit(self, size: int, keyframe: bool, now: float) -> bool:
        """Whether to send a picture of `size` bytes at `now`, in seconds."""
        spent = self._spent(now)
        if spent or not (self.whole or keyframe):
            self.dropped += self.begun
            self.whole = False
            return False
        self.whole = self.begun = True
        self._credit -= 8 * size
        return True

    def _spent(self, now: float) -> bool:
        if self.allowance is None:
            self._credit = 0.0
            self._counted = now
            return False
        passed, self._counted = max(0.0, now - self._counted), now
        self._credit = min(self._credit + passed * self.allowance, SAVINGS * self.allowance)
        return self._credit < 0

    def affords(self, now: float) -> bool:
        """Whether there is allowance for a picture."""
        return not self._spent(now)
