"""One message whole and one streamed, with the official Anthropic SDK as it is.

Arguments: base URL, key, model. Prints the usage of both as one line of JSON."""

import json
import sys

from anthropic import Anthropic

base_url, key, model = sys.argv[1:]
client = Anthropic(base_url=base_url, api_key=key)
messages = [{"role": "user", "content": "Say something."}]

whole = client.messages.create(model=model, messages=messages, max_tokens=8)
assert whole.role == "assistant" and whole.type == "message"
assert whole.stop_reason in ("end_turn", "max_tokens", "stop_sequence"), whole

with client.messages.stream(model=model, messages=messages, max_tokens=8) as stream:
    text = "".join(stream.text_stream)
    streamed = stream.get_final_message()
assert streamed.stop_reason in ("end_turn", "max_tokens", "stop_sequence"), streamed


def usage(message):
    # what was read from a cache stands beside the input in this dialect, and is charged like it where it has no price
    read = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    return {"input_tokens": read, "output_tokens": message.usage.output_tokens}


print(json.dumps({"whole": usage(whole), "streamed": usage(streamed), "text": text}))
