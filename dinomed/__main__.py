"""``python -m dinomed``: the command line, where its script is not on the path of the shell."""

from dinomed.apps.cli import main

if __name__ == "__main__":
    main()
