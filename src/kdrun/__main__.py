"""``python -m kdrun``, and ``kdrun``."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C while the commands are imported is a traceback

from kdrun.cli import main  # noqa: E402  (the handler comes first)

if __name__ == "__main__":
    main()
