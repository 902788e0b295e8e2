"""The official OpenAI SDK for Python: chat, responses, completions, embeddings. Argument: the gateway's address."""

import json
import sys

from openai import OpenAI
from pydantic import BaseModel
from steps import PNG, WEATHER, serve, weather

BASE_URL = sys.argv[1] + "/v1"


class Report(BaseModel):
    city: str
    degrees: int


def client(key):
    return OpenAI(base_url=BASE_URL, api_key=key)


def said(prompt):
    return [{"role": "user", "content": prompt}]


def chat_text(key, model, prompt):
    return client(key).chat.completions.create(model=model, messages=said(prompt), max_tokens=32).choices[0].message.content


def chat_stream(key, model, prompt):
    stream = client(key).chat.completions.create(
        model=model, messages=said(prompt), max_tokens=32, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert usage and usage.total_tokens > 0, "no usage was streamed"
    return text


def chat_tools(key, model, prompt):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
    messages = said(prompt)
    answer = client(key).chat.completions.create(model=model, messages=messages, tools=tools)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls", answer
    messages.append(message)
    for call in message.tool_calls:
        result = weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return client(key).chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message.content


def chat_streamed_tools(key, model, prompt):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
    with client(key).chat.completions.stream(model=model, messages=said(prompt), tools=tools) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds, kinds
    return weather(**json.loads(message.tool_calls[0].function.arguments))


def chat_parse(key, model, prompt):
    answer = client(key).chat.completions.parse(model=model, messages=said(prompt), response_format=Report)
    report = answer.choices[0].message.parsed
    return f"{report.city} {report.degrees}"


def chat_helper(key, model, prompt):
    with client(key).chat.completions.stream(model=model, messages=said(prompt), max_tokens=32) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text
    return text


def chat_image(key, model, prompt):
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": prompt}]}]
    return client(key).chat.completions.create(model=model, messages=messages, max_tokens=32).choices[0].message.content


def chat_cancelled(key, model, prompt):
    stream = client(key).chat.completions.create(model=model, messages=said(prompt), max_tokens=64, stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            stream.close()
            return chunk.choices[0].delta.content
    raise AssertionError("the stream ended")


def responses_text(key, model, prompt):
    return client(key).responses.create(model=model, input=prompt, max_output_tokens=32).output_text


def responses_stream(key, model, prompt):
    text, ended = "", None
    for event in client(key).responses.create(model=model, input=prompt, max_output_tokens=32, stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
        ended = event
    # the tiny model seldom comes to an end by itself
    assert ended.type in ("response.completed", "response.incomplete") and ended.response.usage.total_tokens > 0, ended
    return text


def responses_helper(key, model, prompt):
    with client(key).responses.stream(model=model, input=prompt, max_output_tokens=32) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text
    return text


def responses_tools(key, model, prompt):
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    items = said(prompt)
    answer = client(key).responses.create(model=model, input=items, tools=tools)
    items += answer.output
    for item in answer.output:
        if item.type == "function_call":
            result = weather(**json.loads(item.arguments))
            items.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
    return client(key).responses.create(model=model, input=items, tools=tools).output_text


def responses_parse(key, model, prompt):
    report = client(key).responses.parse(model=model, input=prompt, text_format=Report).output_parsed
    return f"{report.city} {report.degrees}"


def responses_image(key, model, prompt):
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"}
    items = [{"role": "user", "content": [picture, {"type": "input_text", "text": prompt}]}]
    return client(key).responses.create(model=model, input=items, max_output_tokens=32).output_text


def responses_cancelled(key, model, prompt):
    stream = client(key).responses.create(model=model, input=prompt, max_output_tokens=64, stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            stream.close()
            return event.delta
    raise AssertionError("the stream ended")


def completions_text(key, model, prompt):
    return client(key).completions.create(model=model, prompt=prompt, max_tokens=32).choices[0].text


def completions_stream(key, model, prompt):
    stream = client(key).completions.create(model=model, prompt=prompt, max_tokens=32, stream=True)
    return "".join(choice.text for chunk in stream for choice in chunk.choices)


def embeddings_vector(key, model, prompt):
    # asked for as base64, as this SDK does by itself
    answer = client(key).embeddings.create(model=model, input=[prompt, prompt])
    assert [one.index for one in answer.data] == [0, 1], answer
    return str(answer.data[1].embedding)


def models_one(key, model, prompt):
    listed = [one.id for one in client(key).models.list()]
    assert model in listed, listed
    return client(key).models.retrieve(model).id


serve(["openai"], {
    "chat.text": chat_text, "chat.stream": chat_stream, "chat.tools": chat_tools,
    "chat.streamed_tools": chat_streamed_tools, "chat.parse": chat_parse, "chat.helper": chat_helper,
    "chat.image": chat_image, "chat.cancelled": chat_cancelled, "responses.text": responses_text, "responses.stream": responses_stream,
    "responses.helper": responses_helper, "responses.tools": responses_tools, "responses.parse": responses_parse,
    "responses.image": responses_image, "responses.cancelled": responses_cancelled, "completions.text": completions_text,
    "completions.stream": completions_stream, "embeddings.vector": embeddings_vector, "models.one": models_one,
})
