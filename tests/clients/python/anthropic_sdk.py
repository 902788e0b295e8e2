"""The official Anthropic SDK for Python. Argument: the gateway's address."""

import sys

from anthropic import Anthropic
from anthropic.lib.tools import beta_tool
from pydantic import BaseModel
from steps import PNG, WEATHER, serve, weather

BASE_URL = sys.argv[1]
TOOLS = [{"name": "weather", "description": "The weather in a city", "input_schema": WEATHER}]


class Report(BaseModel):
    city: str
    degrees: int


def client(key):
    return Anthropic(base_url=BASE_URL, api_key=key)


def said(prompt):
    return [{"role": "user", "content": prompt}]


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def text(key, model, prompt):
    return text_of(client(key).messages.create(model=model, messages=said(prompt), max_tokens=32))


def stream(key, model, prompt):
    with client(key).messages.stream(model=model, messages=said(prompt), max_tokens=32) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text_of(final) == text and final.usage.output_tokens > 0, final
    return text


def tools(key, model, prompt):
    messages = said(prompt)
    message = client(key).messages.create(model=model, messages=messages, max_tokens=256, tools=TOOLS)
    assert message.stop_reason == "tool_use", message
    messages.append({"role": "assistant", "content": message.content})
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": weather(**block.input)}
               for block in message.content if block.type == "tool_use"]
    messages.append({"role": "user", "content": results})
    return text_of(client(key).messages.create(model=model, messages=messages, max_tokens=256, tools=TOOLS))


def streamed_tools(key, model, prompt):
    with client(key).messages.stream(model=model, messages=said(prompt), max_tokens=256, tools=TOOLS) as stream:
        message = stream.get_final_message()
    return next(weather(**block.input) for block in message.content if block.type == "tool_use")


def runner(key, model, prompt):
    @beta_tool
    def weather_now(city: str) -> str:
        """The weather in a city."""
        return weather(city)

    run = client(key).beta.messages.tool_runner(model=model, messages=said(prompt), max_tokens=256, tools=[weather_now])
    return text_of(run.until_done())


def parse(key, model, prompt):
    message = client(key).messages.parse(model=model, messages=said(prompt), max_tokens=64, output_format=Report)
    return f"{message.parsed_output.city} {message.parsed_output.degrees}"


def thinking(key, model, prompt):
    thinks = {"type": "enabled", "budget_tokens": 1024}
    with client(key).messages.stream(
        model=model, messages=said(prompt), max_tokens=2048, thinking=thinks, tools=TOOLS
    ) as stream:
        message = stream.get_final_message()
    thought = message.content[0]
    assert thought.type == "thinking" and thought.signature, message
    # what it thought goes back with its signature
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": weather(**block.input)}
               for block in message.content if block.type == "tool_use"]
    messages = said(prompt) + [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    return text_of(
        client(key).messages.create(model=model, messages=messages, max_tokens=2048, thinking=thinks, tools=TOOLS)
    )


def image(key, model, prompt):
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": prompt}]}]
    return text_of(client(key).messages.create(model=model, messages=messages, max_tokens=32))


def count(key, model, prompt):
    # the chat template of the tiny model takes no tools
    tools = {} if model == "tiny" else {"tools": TOOLS}
    counted = client(key).messages.count_tokens(model=model, messages=said(prompt), **tools)
    return str(counted.input_tokens > 0)


def cancelled(key, model, prompt):
    with client(key).messages.stream(model=model, messages=said(prompt), max_tokens=64) as stream:
        return next(iter(stream.text_stream))


def one_model(key, model, prompt):
    listed = [one.id for one in client(key).models.list()]
    assert model in listed, listed
    return client(key).models.retrieve(model).id


serve(["anthropic"], {
    "messages.text": text, "messages.stream": stream, "messages.tools": tools,
    "messages.streamed_tools": streamed_tools, "messages.runner": runner, "messages.parse": parse,
    "messages.thinking": thinking, "messages.image": image, "messages.cancelled": cancelled,
    "count.count": count, "models.one": one_model,
})
