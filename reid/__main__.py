"""``python -m reid`` is the ``reid`` command."""

from reid.cli import main

main()
