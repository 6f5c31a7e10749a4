"""Portrait and voice to frames."""

import os

# ONNX Runtime reports its use to its makers from 1.31 on, as soon as it is imported, and keeps a number of this machine
# in the user's folder. Whoever wants that can set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
