"""What a person sees of a run: the line, the summary, the limits."""

from __future__ import annotations

import asyncio
import io
import resource

import pytest

from headrace.devices import drive, progress
from headrace.devices.progress import Progress, duration, line, summary
from headrace.devices.totals import Totals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def totals() -> Totals:
    counts = Totals(taken=1300, sent=1250, resent=7, reconnects=2, connections=9, skipped=4, gave_up=1)
    for _ in range(1200):
        counts.count_ack(0.002)
    for _ in range(3):
        counts.count_reject("payload_invalid")
    return counts


def test_the_line_has_every_count() -> None:
    text = line(totals(), devices=10, acked_per_s=456.7)
    assert text == "sent 1,250  acked 1,200 (457/s)  rejected 3  unacked 97  ack p50 2.0 ms p99 2.0 ms  connections 9/10"
    assert "p50 - p99 -" in line(Totals(), 1, 0.0)
    assert line(Totals(trouble="refused"), 1, 0.0).endswith("connections 0/1  no connection: refused")
    assert "refused" not in line(Totals(trouble="refused", connections=1), 2, 0.0)


def test_the_summary_has_every_count_and_why_messages_were_refused() -> None:
    text = summary(totals(), elapsed_s=10.0)
    for part in (
        "1,250 in 10.0 s (120 acked/s)",
        "3  payload_invalid: 3",
        "unacked     97",
        "7 after 2 reconnects",
        "4 (not taken",
        "1 devices",
    ):
        assert part in text


def test_a_run_is_a_success_only_when_every_message_was_acked() -> None:
    assert Totals(taken=0).exit_code() == 0
    assert totals().exit_code() == 1
    refused = Totals(taken=1)
    refused.count_reject("rate")
    assert refused.exit_code() == 1
    done = Totals(taken=1)
    done.count_ack(0.1)
    assert done.exit_code() == 0


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0.000_25, "250 us"), (0.0123, "12.3 ms"), (2.5, "2.50 s")])
def test_durations_are_shown_in_a_fitting_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_gets_one_line_that_is_rewritten_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S_TERMINAL", 0.001)
    monkeypatch.setattr(progress, "EVERY_S_ELSEWHERE", 0.001)

    async def show(out: io.StringIO) -> str:
        shown = Progress(totals(), 10, out)
        task = asyncio.create_task(shown.run())
        while out.getvalue().count("sent") < 3:  # noqa: ASYNC110  a StringIO has no event
            await asyncio.sleep(0.001)
        shown.say("rejected road.csv:7")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return out.getvalue()

    terminal = asyncio.run(show(Terminal()))
    assert terminal.count("\n") == 2, "the line is rewritten; what is said and the end are lines of their own"
    assert "\r\x1b[Krejected road.csv:7\n" in terminal
    elsewhere = asyncio.run(show(io.StringIO()))
    assert "\r" not in elsewhere
    assert elsewhere.count("\n") == elsewhere.count("sent") + 1


def test_more_connections_than_the_machine_allows_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    drive.need_files(100)
    assert raised == []
    drive.need_files(500)
    assert raised == [(564, 1000)]
    with pytest.raises(OSError, match="2000 connections need 2064 open files, this machine allows 1000"):
        drive.need_files(2000)
