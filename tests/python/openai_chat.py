"""One chat request whole and one streamed, with the official OpenAI SDK as it is.

Arguments: base URL, key, model. Prints the usage of both as one line of JSON."""

import json
import sys

from openai import OpenAI

base_url, key, model = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key=key)
messages = [{"role": "user", "content": "Say something."}]

assert model in [listed.id for listed in client.models.list()], "the model is not listed"

whole = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
assert whole.choices[0].message.role == "assistant"
assert whole.choices[0].finish_reason in ("stop", "length"), whole
assert 1 <= whole.usage.completion_tokens <= 8, whole

text, usage, finish = "", None, None
stream = client.chat.completions.create(
    model=model, messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
assert finish in ("stop", "length"), finish
assert usage is not None, "no usage was streamed"

print(json.dumps({"whole": whole.usage.model_dump(), "streamed": usage.model_dump(), "text": text}))
