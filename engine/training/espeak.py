"""A program of its own: espeak-ng reads a text, and tells when each phoneme begins.

    python -I espeak.py VOICE FILE.wav TEXT

It prints a line "SECONDS IPA" for each phoneme; a pause has no IPA. A process for each text, because the library
(1.51) remembers what it said before, and hangs when it is ended and begun again. Nothing of the engine is imported.
"""

import ctypes
import ctypes.util
import sys
import wave

# From speak_lib.h.
_SYNCHRONOUS, _INITIALIZE = 2, 0x1 | 0x2 | 0x8000  # phoneme events, in IPA, and no exit() on errors
_UTF8, _LIST_TERMINATED, _PHONEME = 1, 0, 7


class _Identity(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def library_file() -> str | None:
    """The name of espeak-ng's library, None where it is not installed."""
    return ctypes.util.find_library("espeak-ng")


def main(voice: str, file: str, text: str) -> int:
    """Exit status: 0 done, 1 the library is not there or refused."""
    name = library_file()
    if name is None:
        return 1
    library = ctypes.CDLL(name)
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
        ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _INITIALIZE)
    if rate <= 0 or library.espeak_SetVoiceByName(voice.encode()) != 0:
        return 1
    sound = bytearray()
    events: list[tuple[float, str]] = []

    def hear(samples, count, heard) -> int:
        if samples and count > 0:
            sound.extend(ctypes.string_at(samples, 2 * count))
        index = 0
        while heard[index].type != _LIST_TERMINATED:
            if heard[index].type == _PHONEME:
                name = heard[index].id.string.decode("utf-8", "ignore")
                events.append((heard[index].audio_position / 1000, name))
            index += 1
        return 0

    callback = _Callback(hear)  # kept until the end: the library holds no reference
    library.espeak_SetSynthCallback(callback)
    data = text.encode()
    if library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) != 0 or not sound:
        return 1
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(bytes(sound))
    for at, name in events:
        sys.stdout.buffer.write(f"{at:.3f} {name}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
