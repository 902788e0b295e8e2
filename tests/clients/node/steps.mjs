// How a client in Node is driven: one step a line on standard input, its outcome a line on standard output.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

// `steps` are functions by name; each returns a text. The first line tells versions and names.
export async function serve(packages, steps) {
  const versions = Object.fromEntries(packages.map((name) => [name, version(name)]));
  console.log(JSON.stringify({ versions, steps: Object.keys(steps) }));
  for await (const line of createInterface({ input: process.stdin })) {
    const { step, ...asked } = JSON.parse(line);
    console.log(JSON.stringify(await told(() => steps[step](asked))));
  }
}

async function told(step) {
  try {
    return { text: await step() };
  } catch (error) {
    return { error: error?.constructor?.name, status: statusOf(error), message: String(error?.message).slice(0, 2000) };
  }
}

// The HTTP status that it was thrown for, where it or what caused it has one.
function statusOf(error) {
  for (let at = error; at; at = at.cause ?? at.lastError) {
    const status = at.status ?? at.statusCode;
    if (Number.isInteger(status)) return status;
  }
  return null;
}

function version(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

// The tool of all clients, whose result comes back in the answer of the mock.
export const weather = ({ city }) => `21 degrees in ${city}`;
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
// one pixel
export const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

export function check(holds, what) {
  if (!holds) throw new Error(typeof what === "string" ? what : JSON.stringify(what));
}
