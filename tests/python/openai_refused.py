"""A request that must be refused, with the official OpenAI SDK as it is.

Arguments: base URL, key, model. Prints the error as one line of JSON."""

import json
import sys

from openai import OpenAI, OpenAIError

base_url, key, model = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key=key)
try:
    client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say something."}], max_tokens=8
    )
except OpenAIError as error:
    print(json.dumps({"error": type(error).__name__, "code": getattr(error, "code", None)}))
else:
    raise SystemExit("the request was served")
