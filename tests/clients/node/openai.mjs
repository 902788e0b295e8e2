// The official OpenAI SDK for Node: chat, responses, completions, embeddings. Argument: the gateway's address.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { check, serve, weather, WEATHER } from "./steps.mjs";

const baseURL = `${process.argv[2]}/v1`;
const client = (apiKey) => new OpenAI({ baseURL, apiKey });
const said = (content) => [{ role: "user", content }];
const Report = z.object({ city: z.string(), degrees: z.number() });
const chatTools = [{ type: "function", function: { name: "weather", parameters: WEATHER, strict: true } }];
const responseTools = [{ type: "function", name: "weather", parameters: WEATHER, strict: true }];

await serve(["openai"], {
  "chat.text": async ({ key, model, prompt }) => {
    const answer = await client(key).chat.completions.create({ model, messages: said(prompt), max_tokens: 32 });
    return answer.choices[0].message.content;
  },
  "chat.stream": async ({ key, model, prompt }) => {
    const stream = await client(key).chat.completions.create({
      model, messages: said(prompt), max_tokens: 32, stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    check(usage?.total_tokens > 0, "no usage was streamed");
    return text;
  },
  "chat.tools": async ({ key, model, prompt }) => {
    const messages = said(prompt);
    const { message } = (await client(key).chat.completions.create({ model, messages, tools: chatTools })).choices[0];
    messages.push(message);
    for (const call of message.tool_calls) {
      messages.push({ role: "tool", tool_call_id: call.id, content: weather(JSON.parse(call.function.arguments)) });
    }
    return (await client(key).chat.completions.create({ model, messages, tools: chatTools })).choices[0].message.content;
  },
  "chat.runner": async ({ key, model, prompt }) => {
    const tool = { type: "function", function: { name: "weather", parameters: WEATHER, parse: JSON.parse, function: weather } };
    return client(key).chat.completions.runTools({ model, messages: said(prompt), tools: [tool] }).finalContent();
  },
  "chat.parse": async ({ key, model, prompt }) => {
    const response_format = zodResponseFormat(Report, "report");
    const answer = await client(key).chat.completions.parse({ model, messages: said(prompt), response_format });
    const { city, degrees } = answer.choices[0].message.parsed;
    return `${city} ${degrees}`;
  },
  "chat.helper": async ({ key, model, prompt }) => {
    const stream = client(key).chat.completions.stream({ model, messages: said(prompt), max_tokens: 32 });
    return stream.finalContent();
  },
  "chat.cancelled": async ({ key, model, prompt }) => {
    const stream = await client(key).chat.completions.create({ model, messages: said(prompt), max_tokens: 64, stream: true });
    for await (const chunk of stream) {
      // to break out of the loop aborts the request
      if (chunk.choices[0]?.delta.content) return chunk.choices[0].delta.content;
    }
    throw new Error("the stream ended");
  },
  "responses.text": async ({ key, model, prompt }) =>
    (await client(key).responses.create({ model, input: prompt, max_output_tokens: 32 })).output_text,
  "responses.stream": async ({ key, model, prompt }) => {
    let text = "", last;
    for await (const event of await client(key).responses.create({ model, input: prompt, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    // the tiny model seldom comes to an end by itself
    check(["response.completed", "response.incomplete"].includes(last.type) && last.response.usage.total_tokens > 0, last);
    return text;
  },
  "responses.helper": async ({ key, model, prompt }) =>
    (await client(key).responses.stream({ model, input: prompt }).finalResponse()).output_text,
  "responses.tools": async ({ key, model, prompt }) => {
    const input = said(prompt);
    const answer = await client(key).responses.create({ model, input, tools: responseTools });
    input.push(...answer.output);
    for (const item of answer.output.filter(({ type }) => type === "function_call")) {
      input.push({ type: "function_call_output", call_id: item.call_id, output: weather(JSON.parse(item.arguments)) });
    }
    return (await client(key).responses.create({ model, input, tools: responseTools })).output_text;
  },
  "responses.parse": async ({ key, model, prompt }) => {
    const text = { format: zodTextFormat(Report, "report") };
    const { city, degrees } = (await client(key).responses.parse({ model, input: prompt, text })).output_parsed;
    return `${city} ${degrees}`;
  },
  "responses.cancelled": async ({ key, model, prompt }) => {
    for await (const event of await client(key).responses.create({ model, input: prompt, stream: true })) {
      if (event.type === "response.output_text.delta") return event.delta;
    }
    throw new Error("the stream ended");
  },
  "completions.text": async ({ key, model, prompt }) =>
    (await client(key).completions.create({ model, prompt, max_tokens: 32 })).choices[0].text,
  "completions.stream": async ({ key, model, prompt }) => {
    let text = "";
    for await (const chunk of await client(key).completions.create({ model, prompt, max_tokens: 32, stream: true })) {
      text += chunk.choices[0]?.text ?? "";
    }
    return text;
  },
  "embeddings.vector": async ({ key, model, prompt }) => {
    const answer = await client(key).embeddings.create({ model, input: [prompt, prompt] });
    return `[${answer.data[1].embedding.map((value) => (value === 1 ? "1.0" : value)).join(", ")}]`;
  },
  "models.one": async ({ key, model }) => {
    const listed = [];
    for await (const one of client(key).models.list()) listed.push(one.id);
    check(listed.includes(model), listed);
    return (await client(key).models.retrieve(model)).id;
  },
});
