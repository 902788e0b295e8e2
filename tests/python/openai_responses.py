"""One response whole and one streamed, with the official OpenAI SDK and its stream helper as they are.

Arguments: base URL, key, model. Prints the usage of both as one line of JSON."""

import json
import sys

from openai import BadRequestError, OpenAI

base_url, key, model = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key=key)
asked = [{"role": "user", "content": "Say something."}]

whole = client.responses.create(model=model, input=asked, instructions="Be brief.", max_output_tokens=16)
assert whole.object == "response" and whole.error is None, whole
assert whole.status in ("completed", "incomplete"), whole
assert 1 <= whole.usage.output_tokens <= 16, whole
assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens

# what was answered is sent again as it came
turn = asked + [item.model_dump() for item in whole.output] + [{"role": "user", "content": "Go on."}]
text, kinds, numbers, last = "", [], [], None
with client.responses.stream(model=model, input=turn, max_output_tokens=16) as stream:
    for event in stream:
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type in ("response.completed", "response.incomplete"):
            last = event.response
assert kinds[:2] == ["response.created", "response.in_progress"], kinds
assert numbers == list(range(len(numbers))), numbers
assert last is not None, kinds
assert last.output_text == text, (last, text)
if last.status == "completed":
    assert stream.get_final_response().output_text == text

try:
    client.responses.create(model=model, input="hi", previous_response_id="resp_1")
    raise SystemExit("a response that nobody keeps was found")
except BadRequestError as error:
    assert error.param == "previous_response_id", error

print(json.dumps({"whole": whole.usage.model_dump(), "streamed": last.usage.model_dump(), "text": text}))
