#!/usr/bin/env python3
"""Keeps bills from Seatbelt's feed: one row for each reservation, in SQLite.

Needs nats-py and msgpack. Stop it at any time and start it again: it goes on where it was, and what is delivered
twice is billed once, since the row and the message's id are written together before the message is acknowledged.

    python bill.py data/nats.json bills.sqlite            # follows the feed
    python bill.py data/nats.json bills.sqlite --once     # stops at its end and prints each account's total
"""

import argparse
import asyncio
import json
import sqlite3
import sys

import msgpack
import nats

BATCH = 500
QUIET_S = 2.0

TABLES = """
CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS bills (
    reservation TEXT PRIMARY KEY, account TEXT NOT NULL, key TEXT NOT NULL, model TEXT,
    tokens INTEGER NOT NULL, nano_usd INTEGER NOT NULL, requests INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL
);
"""


def bill(database, message_id, event):
    """Writes what one event changes. The caller commits a batch and acknowledges it after that."""
    if database.execute("INSERT OR IGNORE INTO seen VALUES (?)", [message_id]).rowcount == 0:
        return
    kind, data = event["kind"], event["data"]
    if kind not in ("settled", "expired"):
        return
    charge = data["charge"]
    # a `settled` with `late` replaces the `expired` of its reservation, in whatever order the two come: what is
    # delivered again may come behind what followed it
    verb = "INSERT OR IGNORE" if kind == "expired" else "INSERT OR REPLACE"
    database.execute(
        f"{verb} INTO bills VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            data["reservation"],
            event["account"],
            data["scopes"]["key"] if "scopes" in data else data["key"],
            data.get("model"),
            charge.get("tokens", 0),
            charge.get("cost") or 0,
            charge.get("requests", 0),
            data["reserved_at_ms"],
            kind,
        ],
    )


async def follow(arguments):
    with open(arguments.nats) as file:
        about = json.load(file)
    database = sqlite3.connect(arguments.database)
    database.executescript(TABLES)
    connection = await nats.connect(about.get("reader_url") or about["url"], connect_timeout=5)
    stream = f"{arguments.prefix.upper()}_FEED"
    # made with the stream: who only reads the feed may make no consumers
    feed = await connection.jetstream().pull_subscribe_bind(consumer="billing", stream=stream)
    while True:
        try:
            messages = await feed.fetch(BATCH, timeout=QUIET_S)
        except asyncio.TimeoutError:  # of the library, and of Python below it
            if arguments.once:
                break
            continue
        with database:
            for message in messages:
                bill(database, message.headers["ce-id"], msgpack.unpackb(message.data))
        for message in messages:
            await message.ack()
    await connection.close()
    return database


def totals(database):
    query = "SELECT account, SUM(tokens), SUM(nano_usd), SUM(requests) FROM bills GROUP BY account ORDER BY account"
    for account, tokens, nano_usd, requests in database.execute(query):
        yield {"account": account, "tokens": tokens, "nano_usd": nano_usd, "requests": requests}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nats", help="nats.json in the data folder, or a file like it: {\"url\": \"nats://...\"}")
    parser.add_argument("database", help="the SQLite file, made where it is not there")
    parser.add_argument("--prefix", default="seatbelt", help="nats.prefix of the configuration")
    parser.add_argument("--once", action="store_true", help="stop at the feed's end and print each account's total")
    arguments = parser.parse_args()
    database = asyncio.run(follow(arguments))
    for total in totals(database):
        print(json.dumps(total))
    return 0


if __name__ == "__main__":
    sys.exit(main())
