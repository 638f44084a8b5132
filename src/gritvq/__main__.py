"""The program ``gritvq``, also as ``python -m gritvq``."""

import sys

from gritvq.lazy import optional


def main() -> int:
    """Run the command line, whose packages come with an extra."""
    try:
        optional("jsonargparse", "train")
    except ValueError as error:
        print(f"gritvq: error: {error}", file=sys.stderr)
        return 2
    from gritvq.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
