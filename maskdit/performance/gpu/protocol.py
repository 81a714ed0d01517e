"""The workers' side of the pipes: one JSON request a line in, one JSON reply a line out."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def serve(handlers: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answers requests `{"do": NAME, ...}` until the input ends.

    What a handler raises becomes the reply `{"error": sentence}`, with its traceback on standard error; the worker goes
    on. What libraries print goes to standard error too, and never between the replies.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        fields = json.loads(line)
        try:
            reply = handlers[fields.pop("do")](**fields)
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().splitlines()
            reply = {"error": f"{type(error).__name__}: {text[0] if text else ''}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)
