// The official Anthropic SDK for Node. Argument: the gateway's address.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { check, PNG, serve, weather, WEATHER } from "./steps.mjs";

const baseURL = process.argv[2];
const client = (apiKey) => new Anthropic({ baseURL, apiKey });
const said = (content) => [{ role: "user", content }];
const textOf = ({ content }) => content.map((block) => (block.type === "text" ? block.text : "")).join("");
const tools = [{ name: "weather", description: "The weather in a city", input_schema: WEATHER }];
const Report = z.object({ city: z.string(), degrees: z.number() });

// What the tools of a message say, as the next turn.
function results(message) {
  const calls = message.content.filter(({ type }) => type === "tool_use");
  return { role: "user", content: calls.map(({ id, input }) => ({ type: "tool_result", tool_use_id: id, content: weather(input) })) };
}

await serve(["@anthropic-ai/sdk"], {
  "messages.text": async ({ key, model, prompt }) =>
    textOf(await client(key).messages.create({ model, messages: said(prompt), max_tokens: 32 })),
  "messages.stream": async ({ key, model, prompt }) =>
    client(key).messages.stream({ model, messages: said(prompt), max_tokens: 32 }).finalText(),
  "messages.tools": async ({ key, model, prompt }) => {
    const messages = said(prompt);
    const message = await client(key).messages.create({ model, messages, max_tokens: 256, tools });
    check(message.stop_reason === "tool_use", message);
    messages.push({ role: "assistant", content: message.content }, results(message));
    return textOf(await client(key).messages.create({ model, messages, max_tokens: 256, tools }));
  },
  "messages.streamed_tools": async ({ key, model, prompt }) => {
    const stream = client(key).messages.stream({ model, messages: said(prompt), max_tokens: 256, tools });
    return results(await stream.finalMessage()).content[0].content;
  },
  "messages.runner": async ({ key, model, prompt }) => {
    const tool = betaZodTool({
      name: "weather", description: "The weather in a city", inputSchema: z.object({ city: z.string() }), run: weather,
    });
    const run = client(key).beta.messages.toolRunner({ model, messages: said(prompt), max_tokens: 256, tools: [tool] });
    return textOf(await run.runUntilDone());
  },
  "messages.parse": async ({ key, model, prompt }) => {
    const output_config = { format: zodOutputFormat(Report) };
    const message = await client(key).messages.parse({ model, messages: said(prompt), max_tokens: 64, output_config });
    return `${message.parsed_output.city} ${message.parsed_output.degrees}`;
  },
  "messages.thinking": async ({ key, model, prompt }) => {
    const thinking = { type: "enabled", budget_tokens: 1024 };
    const messages = said(prompt);
    const stream = client(key).messages.stream({ model, messages, max_tokens: 2048, thinking, tools });
    const message = await stream.finalMessage();
    check(message.content[0].type === "thinking" && message.content[0].signature, message);
    // what it thought goes back with its signature
    messages.push({ role: "assistant", content: message.content }, results(message));
    return textOf(await client(key).messages.create({ model, messages, max_tokens: 2048, thinking, tools }));
  },
  "messages.image": async ({ key, model, prompt }) => {
    const picture = { type: "image", source: { type: "base64", media_type: "image/png", data: PNG } };
    const messages = said([picture, { type: "text", text: prompt }]);
    return textOf(await client(key).messages.create({ model, messages, max_tokens: 32 }));
  },
  "messages.cancelled": async ({ key, model, prompt }) => {
    const stream = client(key).messages.stream({ model, messages: said(prompt), max_tokens: 64 });
    for await (const event of stream) {
      // to break out of the loop aborts the request
      if (event.type === "content_block_delta") return event.delta.text;
    }
    throw new Error("the stream ended");
  },
  "count.count": async ({ key, model, prompt }) => {
    // the chat template of the tiny model takes no tools
    const taken = model === "tiny" ? {} : { tools };
    const counted = await client(key).messages.countTokens({ model, messages: said(prompt), ...taken });
    return counted.input_tokens > 0 ? "True" : "False";
  },
  "models.one": async ({ key, model }) => {
    const listed = [];
    for await (const one of client(key).models.list()) listed.push(one.id);
    check(listed.includes(model), listed);
    return (await client(key).models.retrieve(model)).id;
  },
});
