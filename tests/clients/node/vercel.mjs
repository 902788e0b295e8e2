// The AI SDK of Vercel with the provider that the second argument names. The first is the gateway's address.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";
import { PNG, serve, weather } from "./steps.mjs";

const [gateway, provider] = process.argv.slice(2);
const baseURL = `${gateway}/v1`;
// The models of each API that a provider speaks.
const makes = {
  openai: {
    chat: (apiKey, model) => createOpenAI({ baseURL, apiKey }).chat(model),
    responses: (apiKey, model) => createOpenAI({ baseURL, apiKey })(model),
  },
  compatible: {
    chat: (apiKey, model) =>
      createOpenAICompatible({ name: "seatbelt", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true })(model),
  },
  anthropic: { messages: (apiKey, model) => createAnthropic({ baseURL, apiKey })(model) },
}[provider];
const tools = {
  weather: tool({ description: "The weather in a city", inputSchema: z.object({ city: z.string() }), execute: weather }),
};
const Report = z.object({ city: z.string(), degrees: z.number() });

function stepsOf(api, of) {
  return {
    [`${api}.text`]: async ({ key, model, prompt }) =>
      (await generateText({ model: of(key, model), prompt, maxOutputTokens: 32 })).text,
    [`${api}.stream`]: async ({ key, model, prompt }) => {
      let failed;
      const stream = streamText({ model: of(key, model), prompt, maxOutputTokens: 32, onError: ({ error }) => (failed = error) });
      const text = await stream.text;
      if (failed) throw failed;
      return text;
    },
    [`${api}.tools`]: async ({ key, model, prompt }) =>
      (await generateText({ model: of(key, model), prompt, tools, stopWhen: isStepCount(3) })).text,
    [`${api}.runner`]: async ({ key, model, prompt }) =>
      (await streamText({ model: of(key, model), prompt, tools, stopWhen: isStepCount(3) }).text),
    [`${api}.parse`]: async ({ key, model, prompt }) => {
      const { output } = await generateText({ model: of(key, model), prompt, output: Output.object({ schema: Report }) });
      return `${output.city} ${output.degrees}`;
    },
    [`${api}.image`]: async ({ key, model, prompt }) => {
      const content = [{ type: "file", data: PNG, mediaType: "image/png" }, { type: "text", text: prompt }];
      return (await generateText({ model: of(key, model), messages: [{ role: "user", content }] })).text;
    },
    [`${api}.cancelled`]: async ({ key, model, prompt }) => {
      const abort = new AbortController();
      const stream = streamText({ model: of(key, model), prompt, maxOutputTokens: 64, abortSignal: abort.signal });
      for await (const piece of stream.textStream) {
        if (!piece) continue;
        abort.abort();
        return piece;
      }
      throw new Error("the stream ended");
    },
  };
}

const steps = Object.assign({}, ...Object.entries(makes).map(([api, of]) => stepsOf(api, of)));
if (provider === "openai") {
  steps["embeddings.vector"] = async ({ key, model, prompt }) => {
    const of = createOpenAI({ baseURL, apiKey: key }).embedding(model);
    const { embedding } = await embed({ model: of, value: prompt });
    return `[${embedding.map((value) => (value === 1 ? "1.0" : value)).join(", ")}]`;
  };
}
const named = { openai: "@ai-sdk/openai", compatible: "@ai-sdk/openai-compatible", anthropic: "@ai-sdk/anthropic" }[provider];
await serve(["ai", named], steps);
