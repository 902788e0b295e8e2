"""LiteLLM as a client, in both dialects. Argument: the gateway's address."""

import json
import os
import sys

# its list of prices comes with it; it need not ask for a newer one
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from steps import WEATHER, serve, weather

GATEWAY = sys.argv[1]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": WEATHER}}
REPORT = {
    "type": "json_schema",
    "json_schema": {"name": "report", "strict": True, "schema": {
        "type": "object", "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
        "required": ["city", "degrees"], "additionalProperties": False,
    }},
}


def openai(key, model):
    return {"model": f"openai/{model}", "api_base": f"{GATEWAY}/v1", "api_key": key, "max_tokens": 64}


def anthropic(key, model):
    return {"model": f"anthropic/{model}", "api_base": GATEWAY, "api_key": key, "max_tokens": 64}


def said(prompt):
    return [{"role": "user", "content": prompt}]


def steps_of(api, of):
    def text(key, model, prompt):
        return litellm.completion(messages=said(prompt), **of(key, model)).choices[0].message.content

    def stream(key, model, prompt):
        stream = litellm.completion(messages=said(prompt), stream=True, **of(key, model))
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    def tools(key, model, prompt):
        messages = said(prompt)
        message = litellm.completion(messages=messages, tools=[TOOL], **of(key, model)).choices[0].message
        messages.append(message)
        for call in message.tool_calls:
            result = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return litellm.completion(messages=messages, tools=[TOOL], **of(key, model)).choices[0].message.content

    def parse(key, model, prompt):
        answer = litellm.completion(messages=said(prompt), response_format=REPORT, **of(key, model))
        report = json.loads(answer.choices[0].message.content)
        return f"{report['city']} {report['degrees']}"

    def cancelled(key, model, prompt):
        stream = litellm.completion(messages=said(prompt), stream=True, **of(key, model))
        text = next(text for chunk in stream if (text := chunk.choices[0].delta.content))
        stream.completion_stream.close()
        return text

    steps = {"text": text, "stream": stream, "tools": tools, "parse": parse, "cancelled": cancelled}
    return {f"{api}.{name}": step for name, step in steps.items()}


def responses_text(key, model, prompt):
    how = openai(key, model)
    how["max_output_tokens"] = how.pop("max_tokens")
    return litellm.responses(input=prompt, **how).output_text


def embeddings(key, model, prompt):
    how = openai(key, model)
    del how["max_tokens"]
    return str(litellm.embedding(input=[prompt, prompt], **how).data[1]["embedding"])


serve(["litellm"], {
    **steps_of("chat", openai), **steps_of("messages", anthropic),
    "responses.text": responses_text, "embeddings.vector": embeddings,
})
