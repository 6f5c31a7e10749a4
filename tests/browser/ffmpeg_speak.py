"""A WHIP client on FFmpeg's own muxer, which is in PyAV: python ffmpeg_speak.py URL FREQUENCY [CERTIFICATE KEY]. It
sends a tone in Opus and pictures in H.264 until the end of its input, then goes."""

import fractions
import sys
import threading
import time

import av
import numpy as np

RATE, CHUNK = 48_000, 960
url, frequency, *files = sys.argv[1:]
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()

out = av.open(url, "w", format="whip", options=dict(zip(("cert_file", "key_file"), files, strict=False)))
voice = out.add_stream("libopus", rate=RATE)
voice.layout = "stereo"
pictures = out.add_stream("libx264", rate=25)
pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
pictures.options = {"profile": "baseline", "bf": "0", "tune": "zerolatency", "preset": "ultrafast"}
began, number = time.monotonic(), 0
while not ended.is_set():
    if number % 2 == 0:
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number % 256, np.uint8), "rgb24")
        picture.pts, picture.time_base = number // 2, fractions.Fraction(1, 25)
        for packet in pictures.encode(picture):
            out.mux(packet)
    at = number * CHUNK + np.arange(CHUNK)
    tone = (8000 * np.sin(2 * np.pi * float(frequency) * at / RATE)).astype(np.int16)
    sound = av.AudioFrame.from_ndarray(np.repeat(tone, 2).reshape(1, -1), "s16", "stereo")
    sound.sample_rate, sound.pts, sound.time_base = RATE, int(at[0]), fractions.Fraction(1, RATE)
    for packet in voice.encode(sound):
        out.mux(packet)
    number += 1
    ended.wait(max(0.0, began + number * CHUNK / RATE - time.monotonic()))
out.close()
