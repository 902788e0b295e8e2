// LangChain for Node, with the chat models of both dialects. Argument: the gateway's address.
import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { serve, weather } from "./steps.mjs";

const gateway = process.argv[2];
const configuration = { baseURL: `${gateway}/v1` };
const apis = {
  chat: (apiKey, model) => new ChatOpenAI({ apiKey, model, configuration, maxTokens: 64 }),
  responses: (apiKey, model) => new ChatOpenAI({ apiKey, model, configuration, maxTokens: 64, useResponsesApi: true }),
  messages: (apiKey, model) => new ChatAnthropic({ apiKey, model, anthropicApiUrl: gateway, maxTokens: 64 }),
};
const now = tool(weather, { name: "weather", description: "The weather in a city", schema: z.object({ city: z.string() }) });
const Report = z.object({ city: z.string(), degrees: z.number() });

function stepsOf(api, of) {
  return {
    [`${api}.text`]: async ({ key, model, prompt }) => (await of(key, model).invoke(prompt)).text,
    [`${api}.stream`]: async ({ key, model, prompt }) => {
      let text = "";
      for await (const chunk of await of(key, model).stream(prompt)) text += chunk.text;
      return text;
    },
    [`${api}.tools`]: async ({ key, model, prompt }) => {
      const bound = of(key, model).bindTools([now]);
      const messages = [new HumanMessage(prompt)];
      messages.push(await bound.invoke(messages));
      for (const call of messages[1].tool_calls) {
        messages.push(new ToolMessage({ content: await now.invoke(call.args), tool_call_id: call.id }));
      }
      return (await bound.invoke(messages)).text;
    },
    [`${api}.parse`]: async ({ key, model, prompt }) => {
      const asks = of(key, model).withStructuredOutput(Report, { method: "jsonSchema" });
      const { city, degrees } = await asks.invoke(prompt);
      return `${city} ${degrees}`;
    },
    [`${api}.cancelled`]: async ({ key, model, prompt }) => {
      for await (const chunk of await of(key, model).stream(prompt)) {
        if (chunk.text) return chunk.text;
      }
      throw new Error("the stream ended");
    },
  };
}

const steps = Object.assign({}, ...Object.entries(apis).map(([api, of]) => stepsOf(api, of)));
steps["embeddings.vector"] = async ({ key, model, prompt }) => {
  const [, vector] = await new OpenAIEmbeddings({ apiKey: key, model, configuration }).embedDocuments([prompt, prompt]);
  return `[${vector.map((value) => (value === 1 ? "1.0" : value)).join(", ")}]`;
};
await serve(["@langchain/core", "@langchain/openai", "@langchain/anthropic"], steps);
