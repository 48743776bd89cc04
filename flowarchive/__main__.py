"""`python -m flowarchive`: the command line without its console script."""

from flowarchive.cli import main

if __name__ == "__main__":
    main()
