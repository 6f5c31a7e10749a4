"""The program around the engine: settings, command line, wiring."""

__version__ = "0.1.0"
