"""The event store's commands: python scripts/events.py --help (ltrr/cli/events.py)."""

from ltrr.cli.arguments import main
from ltrr.cli.events import run

if __name__ == "__main__":
    main(run)
