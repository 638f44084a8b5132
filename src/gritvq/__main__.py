"""``python -m gritvq``: the command line."""

from gritvq.cli import main

if __name__ == "__main__":
    main()
