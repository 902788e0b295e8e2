"""Agents of pydantic-ai over all three APIs. Argument: the gateway's address."""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from steps import serve, weather

GATEWAY = sys.argv[1]


class Report(BaseModel):
    city: str
    degrees: int


def chat(key, model):
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{GATEWAY}/v1", api_key=key))


def responses(key, model):
    return OpenAIResponsesModel(model, provider=OpenAIProvider(base_url=f"{GATEWAY}/v1", api_key=key))


def messages(key, model):
    return AnthropicModel(model, provider=AnthropicProvider(base_url=GATEWAY, api_key=key))


def weather_now(city: str) -> str:
    """The weather in a city."""
    return weather(city)


weather_now.__name__ = "weather"


def steps_of(api, of):
    def agent(key, model, **more):
        return Agent(of(key, model), model_settings={"max_tokens": 64}, **more)

    async def text(key, model, prompt):
        return (await agent(key, model).run(prompt)).output

    async def stream(key, model, prompt):
        async with agent(key, model).run_stream(prompt) as run:
            return "".join([piece async for piece in run.stream_text(delta=True)])

    async def tools(key, model, prompt):
        return (await agent(key, model, tools=[weather_now]).run(prompt)).output

    async def parse(key, model, prompt):
        # by a tool where the model is not known to follow a schema
        kind = Report if api == "messages" else NativeOutput(Report)
        report = (await agent(key, model, output_type=kind).run(prompt)).output
        return f"{report.city} {report.degrees}"

    async def cancelled(key, model, prompt):
        async with agent(key, model).run_stream(prompt) as run:
            async for piece in run.stream_text(delta=True, debounce_by=None):
                await run.cancel()
                return piece

    steps = {"text": text, "stream": stream, "tools": tools, "parse": parse, "cancelled": cancelled}
    return {f"{api}.{name}": step for name, step in steps.items()}


def main():
    # one loop for all, as a service has; each of its clients belongs to the loop that it was first used in
    loop = asyncio.new_event_loop()
    steps = {**steps_of("chat", chat), **steps_of("responses", responses), **steps_of("messages", messages)}
    serve(["pydantic-ai-slim"], {name: waited(loop, step) for name, step in steps.items()})


def waited(loop, step):
    return lambda **asked: loop.run_until_complete(step(**asked))


main()
