"""One message of the beta API and one count of tokens, with the official Anthropic SDK as it is.

Arguments: base URL, key, model. Prints the usage of the message, and the count, as one line of JSON."""

import json
import sys

from anthropic import Anthropic

base_url, key, model = sys.argv[1:]
client = Anthropic(base_url=base_url, api_key=key)
messages = [{"role": "user", "content": "Say something."}]

whole = client.beta.messages.create(model=model, messages=messages, max_tokens=8)
counted = client.messages.count_tokens(model=model, messages=messages)
usage = {"input_tokens": whole.usage.input_tokens, "output_tokens": whole.usage.output_tokens}
print(json.dumps({"whole": usage, "counted": counted.input_tokens}))
