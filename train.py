"""Training: python train.py fit --config configs/{dense,splade,doc2query,cross_encoder}.yaml --data.path FOLDER."""

from __future__ import annotations

import sys

from ltrr.cli.fit import TrainingCLI


def main() -> None:
    """A user's mistake ends with its message and status 2, not with a traceback."""
    try:
        TrainingCLI()
    except (ValueError, OSError) as error:
        message = str(error)
        print(f"error: {message if len(message) < 2000 else message[:2000] + ' …'}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
