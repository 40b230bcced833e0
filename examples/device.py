"""A device: sends the readings that come as lines of JSON, keeps them until they are acked, and goes on after every break."""

import asyncio
import random
import sys

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse  # all that it needs; the protocol is in docs/protocol.md


async def talk(ws: ClientWebSocketResponse, held: list[str], acked: int):  # gives the numbers of messages that are durable or refused
    hello = (await ws.receive_json())["hello"]  # nothing is sent before it is here
    rejects = {reject["reject"]: reject for reject in hello["refused"]}
    sent = settled = hello["resume"] or acked  # null: the server cannot tell, and all that is held goes again
    while True:
        while acked < settled:
            acked += 1
            message, reject = held.pop(0), rejects.pop(acked, {})  # held are the messages behind acked
            yield acked
            if "retry_ms" in reject:  # it becomes a new message, with a new number
                held.append(message)
                await asyncio.sleep(reject["retry_ms"] / 1000)
            elif reject:
                print(f"refused: {message}: {reject['code']}", file=sys.stderr)
        while sent - acked < min(len(held), hello["window"]):
            await ws.send_str(held[sent - acked])
            sent += 1
        try:
            text = await ws.receive_json(timeout=0.05)
        except TimeoutError:
            continue
        rejects[text.get("reject")], settled = text, text.get("ack", settled)


async def run(url: str, held: list[str]) -> None:
    acked, ceiling, code = 0, 0.05, None
    while code not in {1002, 1003, 1007, 1008, 1009, 4409}:  # connecting again would be no use
        try:
            async with ClientSession() as http, http.ws_connect(f"{url}&acked={acked}", protocols=["headrace.v1.json"], heartbeat=60) as ws:
                async for number in talk(ws, held, acked):
                    acked, ceiling = number, 0.05
        except TypeError:  # what came was no text, but the end
            code = ws.close_code
        except (ClientError, OSError) as error:
            print(f"no connection: {error}", file=sys.stderr)
            await asyncio.sleep(float((getattr(error, "headers", None) or {}).get("Retry-After", 0)))
        await asyncio.sleep(random.uniform(0, ceiling := min(10.0, 2 * ceiling)))


async def main(url: str, name: str) -> None:
    held, session = [], f"{random.getrandbits(64):x}"  # a new one at each start: our memory of the numbers ends with the process
    running = asyncio.create_task(run(f"{url}/v1/devices/{name}/events?session={session}", held))
    while line := await asyncio.to_thread(sys.stdin.readline):
        held += [line.strip()] if len(held) < 100_000 else []  # a full device takes no more
    while held and not running.done():
        await asyncio.wait([running], timeout=0.1)
    print(f"held {len(held)}")


if __name__ == "__main__":  # echo '{"temperature": 21.5}' | .venv/bin/python examples/device.py ws://127.0.0.1:8080 pump-7
    asyncio.run(main(*sys.argv[1:]))
