"""``python -m kdrun`` is the same as ``kdrun``."""

from kdrun.cli import main

main()
