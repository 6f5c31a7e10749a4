"""The program `ifmdm`: what concerns the process as a whole, around the command line.

Little is imported here before `main` runs: until then Ctrl-C would show a traceback.
"""

import os
import signal
import sys

#: What is registered to be called at the exit may take so long, where a thread was left behind.
EXIT_SECONDS = 2.0


def main() -> int:
    """Run this process's command line. Returns the exit status; ends the process where returning could not."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system's own way, until there is a better one
    from plugin import signals, streams

    with signals.handled(signals.end_at_once):
        streams.open_descriptors()
        streams.make_lenient()
        from plugin import cli

        try:
            status = cli.main()
        except SystemExit as left:  # of argparse; a text would be ours
            status = left.code if isinstance(left.code, int) else cli.FAILED if left.code else cli.OK
        status = _told(status, cli.BAD_INPUT)
    with signals.handled(lambda number, frame: _exit_now(status)):
        leave(status)
    signals.ignored()  # the status stands, and the interpreter takes a moment to end, without calling handlers
    return status


def _told(status: int, lost: int) -> int:
    """The status, or `lost` if standard output did not take what was told."""
    from plugin import streams

    problem = streams.flushed(sys.stdout)
    if problem:
        print(f"ifmdm: standard output cannot be written ({problem}): what it was to tell is lost", file=sys.stderr)
    streams.flushed(sys.stderr)
    return lost if problem and not status else status


def leave(status: int) -> None:
    """End the process if threads were left behind, such as one that is stuck in a driver.

    Python would call the interpreter's end with them running, and one that comes back from native code then is ended
    through frames of C++ that allow no such thing: the process aborts (cpython issue 87135).
    """
    import atexit
    import threading

    main = threading.main_thread()
    if all(thread is main for thread in threading.enumerate()):
        return
    # on its own, since what is registered may wait for the same driver
    registered = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    registered.start()
    registered.join(EXIT_SECONDS)
    _exit_now(status)


def _exit_now(status: int) -> None:
    from plugin import streams

    for stream in (sys.stdout, sys.stderr):
        streams.flushed(stream)
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
