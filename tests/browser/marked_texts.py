"""Runs the command line of dinomed with a sign before each text of the demo, as a translation would replace the texts.

python marked_texts.py demo all ...
"""

from dinomed.apps import cli
from dinomed.apps.demos import look

SIGN = "¤"

if __name__ == "__main__":
    texts = {name: SIGN + text for name, text in look._texts().items()}
    look._texts = lambda: texts
    cli.main()
