"""What a neuron does beside plain answers: chats that go on, penalties, answers of a shape, calls of tools."""

import json
import statistics
import threading

from neuron import together
from proof import QUESTIONS, tokens

# Each is an account too.
TOPICS = ["rain", "bread", "sailing", "music", "gardens", "trains"]
# About 640 tokens: chat and answer fit a context of 1,024.
FACTS = 66
PENALTIES = {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.1}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
WHO = ["a baker", "a sailor", "a doctor", "a child", "a teacher", "a king", "a gardener", "a painter"]
# More than any person takes, with spaces between the parts.
PERSON_TOKENS_MAX = 400
# An answer that does not end before its ceiling, to measure.
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 200}
CITY = {"type": "string", "minLength": 1, "maxLength": 20}
UNITS = ["celsius", "fahrenheit"]
TOOLS = {
    "weather": {"city": CITY, "unit": {"enum": UNITS}},
    "time": {"city": CITY},
}
ERRANDS = ["What is the weather in Paris?", "How warm is it in Rome?", "What time is it in Tokyo?", "Is it late in Oslo?"]


def shape(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}}}


def tool(name, properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"the {name} of a city", "parameters": parameters}}


def prove_powers(proof, neuron, way):
    for prove in (prove_going_on, prove_penalties, prove_shapes, prove_calls, prove_flow):
        try:
            prove(proof, neuron, way)
        except (RuntimeError, OSError, KeyError) as error:
            # The others are worth their time where the machine is paid for.
            proof.check(False, f"{way}: {prove.__name__}", repr(error)[:400])


def first_turn(topic):
    facts = " ".join(f"Fact {number} about {topic} is known." for number in range(FACTS))
    return [{"role": "user", "content": f"{facts} Tell me one more about {topic}."}]


def second_turn(topic, said):
    return [
        *first_turn(topic),
        {"role": "assistant", "content": said},
        {"role": "user", "content": f"What else do people like about {topic}?"},
    ]


def prove_going_on(proof, neuron, way):
    """A second turn says the same whether its beginning is read again or not."""
    firsts = [neuron.stream(first_turn(topic), account=topic) for topic in TOPICS]
    chats = [second_turn(topic, first.text) for topic, first in zip(TOPICS, firsts)]
    # Who names no account goes on with nothing, not even his own.
    wholes = [neuron.stream(chat) for chat in chats]
    continued = [neuron.stream(chat, account=topic) for topic, chat in zip(TOPICS, chats)]
    beside = together([lambda t=topic, c=chat: neuron.stream(c, account=t) for topic, chat in zip(TOPICS, chats)])

    cached, read = [on.cached() for on in continued], [on.usage["prompt_tokens"] for on in continued]
    reused = all(kept >= 0.9 * first.usage["prompt_tokens"] for kept, first in zip(cached, firsts))
    proof.check(reused and not any(whole.cached() for whole in wholes), f"{way}: second turns go on, within an account",
                f"cached {cached} of {read}, without an account {[whole.cached() for whole in wholes]}")
    said = [whole.text for whole in wholes]
    proof.compare(f"{way}: second turns are the CPU's", "second_turns", said)
    proof.alike(f"{way}: second turns that go on say the same", [on.text for on in continued], said)
    proof.alike(f"{way}: all of them at once too", [on.text for on in beside], said)
    for name, streams in (("first turn", firsts), ("second turn, read again", wholes), ("second turn, gone on with", continued)):
        length = statistics.median(each.usage["prompt_tokens"] for each in streams)
        took = statistics.median(each.first() for each in streams)
        proof.row(way, f"{name} ({length:.0f} tokens), to the first token", 1, run=took * 1000)


def prove_penalties(proof, neuron, way):
    texts = [neuron.chat(question, **PENALTIES) for question in QUESTIONS[:8]]
    proof.compare(f"{way}: greedy texts with penalties are the CPU's", "penalised", texts)


def person(text):
    """Whether a text is a person, all of it."""
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(read, dict)
        and set(read) == {"name", "age", "likes"}
        and isinstance(read["name"], str)
        and 1 <= len(read["name"]) <= 20
        and type(read["age"]) is int
        and 0 <= read["age"] <= 150
        and isinstance(read["likes"], list)
        and 2 <= len(read["likes"]) <= 3
        and all(isinstance(like, str) and len(like) <= 20 for like in read["likes"])
    )


def prove_shapes(proof, neuron, way):
    def describe(who, **parameters):
        question = f"Describe {who} as JSON with name, age and likes."
        return neuron.chat(question, max_tokens=PERSON_TOKENS_MAX, **shape(PERSON), **parameters)

    alone = [describe(who) for who in WHO]
    valid = [person(text) for text in alone]
    proof.check(all(valid), f"{way}: answers have the shape of their schema", f"{sum(valid)}/{len(valid)}, {alone[0]!r}")
    proof.compare(f"{way}: they are the CPU's", "shapes", alone)
    drawn = together([
        lambda n=n: describe(WHO[n % len(WHO)], temperature=1.0, top_p=0.95, seed=n) for n in range(proof.options.slots)
    ])
    valid = [person(text) for text in drawn]
    odd = next((text for text, holds in zip(drawn, valid) if not holds), drawn[0])
    proof.check(all(valid), f"{way}: drawn ones at once too, {len(set(drawn))} different", f"{sum(valid)}/{len(valid)}, {odd!r}")


def prove_calls(proof, neuron, way):
    tools = [tool(name, properties) for name, properties in TOOLS.items()]

    def call(errand, choice):
        answer = neuron.answer(errand, max_tokens=200, tools=tools, tool_choice=choice)
        return answer.get("finish_reason"), answer.get("message", {}).get("tool_calls"), answer

    choices = ["required", *({"type": "function", "function": {"name": name}} for name in TOOLS)]
    asked = [(errand, choice) for errand in ERRANDS for choice in choices]
    made = together([lambda a=a: call(*a) for a in asked])
    valid = [called(*each[:2], choice) for each, (_, choice) in zip(made, asked)]
    odd = next((each for each, holds in zip(made, valid) if not holds), made[0])
    proof.check(all(valid), f"{way}: calls that are demanded are made", f"{sum(valid)}/{len(valid)}, {odd[2]}")
    told = [json.dumps([each["function"] for each in calls or []], ensure_ascii=False) for _, calls, _ in made]
    proof.compare(f"{way}: they are the CPU's", "calls", told)


def called(reason, calls, choice):
    """Whether it is one call, of a tool that was asked for, with its arguments."""
    if reason != "tool_calls" or not calls or len(calls) != 1:
        return False
    name = calls[0]["function"]["name"]
    wanted = list(TOOLS) if choice == "required" else [choice["function"]["name"]]
    try:
        said = json.loads(calls[0]["function"]["arguments"])
    except ValueError:
        return False
    fits = isinstance(said, dict) and name in wanted and set(said) == set(TOOLS[name])
    return fits and isinstance(said["city"], str) and said.get("unit", "celsius") in UNITS


def prove_flow(proof, neuron, way):
    """How far apart an answer's tokens come while a long prompt is read; said, not checked: a machine has its hiccups."""
    length, count = min(1900, proof.options.context - 64), 96
    begun = threading.Event()

    def interrupt():
        begun.wait(60)
        neuron.complete(tokens(length, 99), 1)

    other = threading.Thread(target=interrupt)
    other.start()
    question = [{"role": "user", "content": "Count from one to a hundred, in words."}]
    answer = neuron.stream(question, max_tokens=count, on_piece=lambda pieces: pieces == count // 4 and begun.set())
    begun.set()
    other.join()
    gaps = [(later - earlier) * 1000 for earlier, later in zip(answer.moments, answer.moments[1:])]
    detail = f"median {statistics.median(gaps):.2f} ms, longest {max(gaps):.2f} ms, of {len(gaps)}" if gaps else "none"
    proof.note(f"{way}: gaps between tokens while a prompt of {length} is read", detail)
