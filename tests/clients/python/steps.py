"""How a client in Python is driven: one step a line on standard input, its outcome a line on standard output."""

import json
import sys
from importlib.metadata import version


def serve(packages, steps):
    """`steps` are functions by name; each returns a text. The first line tells versions and names."""
    print(json.dumps({"versions": {name: version(name) for name in packages}, "steps": list(steps)}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = {"text": steps[asked.pop("step")](**asked)}
        except Exception as error:
            told = {"error": type(error).__name__, "status": status_of(error), "message": str(error)[:2000]}
        print(json.dumps(told), flush=True)


def status_of(error):
    """The HTTP status that it was raised for, where it or what caused it has one."""
    while error is not None:
        if isinstance(status := getattr(error, "status_code", None), int):
            return status
        error = error.__cause__ or error.__context__
    return None


def weather(city):
    """The tool of all clients, whose result comes back in the answer of the mock."""
    return f"21 degrees in {city}"


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PNG = (  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
