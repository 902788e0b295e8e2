"""LangChain for Python, with the chat models of both dialects. Argument: the gateway's address."""

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from steps import serve, weather

GATEWAY = sys.argv[1]


class Report(BaseModel):
    city: str
    degrees: int


@tool("weather")
def weather_now(city: str) -> str:
    """The weather in a city."""
    return weather(city)


def openai(key, model, **more):
    return ChatOpenAI(base_url=f"{GATEWAY}/v1", api_key=key, model=model, max_tokens=64, **more)


def responses(key, model):
    return openai(key, model, use_responses_api=True)


def anthropic(key, model):
    return ChatAnthropic(base_url=GATEWAY, api_key=key, model=model, max_tokens=64)


def steps_of(api, of):
    def text(key, model, prompt):
        return of(key, model).invoke(prompt).text

    def stream(key, model, prompt):
        return "".join(chunk.text for chunk in of(key, model).stream(prompt))

    def tools(key, model, prompt):
        bound = of(key, model).bind_tools([weather_now])
        messages = [HumanMessage(prompt)]
        messages.append(bound.invoke(messages))
        messages += [weather_now.invoke(call) for call in messages[1].tool_calls]
        return bound.invoke(messages).text

    def parse(key, model, prompt):
        report = of(key, model).with_structured_output(Report, method="json_schema").invoke(prompt)
        return f"{report.city} {report.degrees}"

    def cancelled(key, model, prompt):
        stream = of(key, model).stream(prompt)
        text = next(chunk.text for chunk in stream if chunk.text)
        stream.close()
        return text

    steps = {"text": text, "stream": stream, "tools": tools, "parse": parse, "cancelled": cancelled}
    return {f"{api}.{name}": step for name, step in steps.items()}


def embeddings(key, model, prompt):
    # without this it sends tokens of OpenAI's, for which it would fetch their table
    of = OpenAIEmbeddings(base_url=f"{GATEWAY}/v1", api_key=key, model=model, check_embedding_ctx_length=False)
    return str(of.embed_documents([prompt, prompt])[1])


serve(["langchain-core", "langchain-openai", "langchain-anthropic"], {
    **steps_of("chat", openai), **steps_of("responses", responses), **steps_of("messages", anthropic),
    "embeddings.vector": embeddings,
})
