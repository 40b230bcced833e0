"""The logic of `headrace torture`: its schedule, its layout of a site, its devices, its proxy, its words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.config import load
from headrace.torture import command, events, schedule
from headrace.torture.device import Device
from headrace.torture.events import BAD_EVERY, READINGS, readings
from headrace.torture.lake import Row
from headrace.torture.layout import SENDING_POINTS, LayoutError, layout
from headrace.torture.proxy import Proxy, Weather
from headrace.torture.schedule import Point, Step
from headrace.torture.verdict import judge
from headrace_transport_zmq import receiving, sending

EXAMPLES = Path(__file__).parents[2] / "examples"
POINTS = [Point(f"far.{number}", needed=number % 2 == 0) for number in range(10)]


# --- the schedule ------------------------------------------------------------------------------------------------------


def test_a_schedule_is_a_function_of_the_seed() -> None:
    assert schedule.tier_lane(7, "edge", POINTS, 60) == schedule.tier_lane(7, "edge", POINTS, 60)
    assert schedule.link_lane(7, "a -> b", 60) == schedule.link_lane(7, "a -> b", 60)
    lanes = {tuple(schedule.tier_lane(seed, tier, POINTS, 60)) for seed in (1, 2) for tier in ("edge", "middle")}
    assert len(lanes) == 4


@pytest.mark.parametrize("seed", range(20))
def test_ten_minutes_kill_each_tier_often_and_at_every_point(seed: int) -> None:
    lane = schedule.tier_lane(seed, "edge", POINTS, 600)
    assert {step.point for step in lane if step.deed == "point"} == {point.name for point in POINTS}
    assert sum(step.deed == "kill" for step in lane) >= 10
    assert {step.deed for step in lane} == {"kill", "point", "pause", "drain"}
    assert {step.deed for step in schedule.link_lane(seed, "l", 600)} == {"cut", "stall", "stall_there", "stall_back"}
    assert any(step.hold_s > 5 for step in lane)


def test_a_long_trial_owes_what_it_is_there_to_show_whatever_its_lanes_say() -> None:
    needed = tuple(sorted(point.name for point in POINTS if point.needed))
    assert schedule.owed([], POINTS, 600) == (10, needed)
    assert schedule.owed([], POINTS, 599) == (1, ())
    lane = [Step(0, "kill", 0), Step(0, "point", 0, "far.2", 1), Step(0, "point", 0, "far.1", 1), Step(0, "pause", 1)]
    assert schedule.owed(lane, POINTS, 60) == (5, ("far.2",)), "who dies at a point was killed before, to arm it"
    many = [Point(f"far.{number}", needed=True) for number in range(500)]
    assert schedule.owed(schedule.tier_lane(7, "edge", many, 600), many, 0).points == tuple(sorted(point.name for point in many))


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_trial_has_a_death_of_each_tier_and_begins_with_the_points_it_needs(seed: int) -> None:
    lane = schedule.tier_lane(seed, "edge", POINTS, 0.1)
    assert any(step.deed in ("kill", "point") for step in lane)
    long = [step.point for step in schedule.tier_lane(seed, "edge", POINTS, 120) if step.deed == "point"]
    assert set(long[:5]) == {point.name for point in POINTS if point.needed}
    assert not any(step.deed == "point" for step in schedule.tier_lane(seed, "edge", [], 60))


# --- the layout --------------------------------------------------------------------------------------------------------


def test_tiers_are_processes_and_links_between_them_are_found(tmp_path: Path) -> None:
    site = load(EXAMPLES / "tiers.toml")
    made = layout(site, tmp_path)
    assert {link.name for link in made.links} == {
        "edge.uplink -> middle.links",
        "middle.downlink -> storage.links",
        "live.feed -> middle.fan",
    }
    assert [door.name for door in made.doors] == ["devices -> edge.devices"]
    assert [tier for tier in made.order if tier != "live"] == ["edge", "middle", "storage"]
    assert made.lakes == [tmp_path / "storage" / "lake"]
    needed = {name: {point.name for point in tier.points if point.needed} for name, tier in made.tiers.items()}
    assert needed == {
        "edge": {*sending.FAULT_POINTS, *SENDING_POINTS},
        "middle": {*sending.FAULT_POINTS, *SENDING_POINTS, *receiving.FAULT_POINTS},
        "storage": set(receiving.FAULT_POINTS), "live": set(),
    }  # fmt: skip
    uplink = made.link_overrides("edge", site, dict.fromkeys(made.links, 1234))
    assert uplink == ['tiers.edge.outputs.uplink.connect="tcp://127.0.0.1:1234"']
    overridden = "\n".join(override for tier in made.tiers.values() for override in tier.overrides)
    assert 'tiers.middle.sources.links.listen="tcp://127.0.0.1:0"' in overridden
    assert 'tiers.middle.outputs.fan.publish="tcp://127.0.0.1:0"' in overridden
    assert f'tiers.edge.queue.path="{tmp_path}/edge/' in overridden


def test_what_it_settles_is_a_site_that_loads(tmp_path: Path) -> None:
    for name in ("tiers.toml", "single.toml"):
        site = load(EXAMPLES / name)
        made = layout(site, tmp_path)
        for tier, own in made.tiers.items():
            links = made.link_overrides(tier, site, dict.fromkeys(made.links, 1))
            load(EXAMPLES / name, [*own.overrides, *links], {"HEADRACE_DATA": str(tmp_path)}, [tier])


def test_events_come_one_way_unless_an_output_may_choose_its_far_side(tmp_path: Path) -> None:
    assert layout(load(EXAMPLES / "tiers.toml"), tmp_path).one_way
    file = tmp_path / "site.toml"
    peers = ", ".join(f'{{ name = "{name}", connect = "tcp://{host}:5555" }}' for name, host in (("a", "127.0.0.1"), ("b", "localhost")))
    one = 'connect = "tcp://127.0.0.1:5555"\npeer = "middle"'
    file.write_text((EXAMPLES / "tiers.toml").read_text().replace(one, f"peers = [{peers}]"))
    assert not layout(load(file), tmp_path).one_way


def test_a_link_to_nobody_of_the_trial_is_told(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"uplink.connect = tcp://127.0.0.1:\d+: name that tier too"):
        layout(load(EXAMPLES / "tiers.toml", only=["edge"]), tmp_path)


def test_a_site_without_a_lake_cannot_be_checked(tmp_path: Path) -> None:
    site = load(EXAMPLES / "single.toml", ["tiers.site.outputs.lake.enabled=false"])
    with pytest.raises(LayoutError, match="sink_lake"):
        layout(site, tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").touch()
    assert command.main([str(EXAMPLES / "single.toml"), "--folder", str(tmp_path)]) == 78
    assert "expected an empty folder" in capsys.readouterr().err


def test_the_command_to_repeat_a_trial_is_whole() -> None:
    words = ["site.toml", "--minutes", "0.5", "--tier", "edge", "--set", "a.b=c d", "--as-is"]
    again = command.repeat(command.parser().parse_args(words), 7)
    assert again == "headrace torture site.toml --minutes 0.5 --seed 7 --devices 20 --rate 400 --as-is --tier edge --set 'a.b=c d'"


# --- devices -----------------------------------------------------------------------------------------------------------


def device(issued: int = 5) -> Device:
    made = Device("torture-1", "t")
    made.greeted({"resume": 0, "window": 3})
    for _ in range(issued):
        made.issue()
    return made


def sent(made: Device) -> list[int]:
    found = []
    while (number := made.next()) is not None:
        found.append(number)
    return found


def test_a_device_sends_what_its_window_has_room_for_and_counts_acks() -> None:
    made = device()
    assert sent(made) == [1, 2, 3]
    made.received({"ack": 2})
    assert (sent(made), made.acked(), made.acked_count, made.unsettled) == ([4, 5], {1, 2}, 2, 3)
    assert not made.wrongs


def test_what_a_hello_settles_is_acked_and_the_rest_is_sent_again() -> None:
    made = device()
    sent(made)
    made.greeted({"resume": 2, "refused": []})
    assert made.acked() == {1, 2}
    assert sent(made) == [3, 4, 5]
    assert (made.resumed, made.resent) == (2, 1)


def test_a_retry_is_a_new_message_of_the_same_event() -> None:
    made = device()
    sent(made)
    made.received({"reject": 1, "code": "rate", "retry_ms": 10})
    made.received({"ack": 2})
    assert made.acked() == {2}
    assert sent(made) == [1, 4]
    made.received({"ack": 4})
    assert made.acked() == {1, 2, 3}


@pytest.mark.parametrize("frame", [{"ack": 4}, {"ack": -1}, {"reject": 9, "code": "x"}, {"reject": 1, "code": "payload_invalid"}], ids=str)
def test_what_the_protocol_does_not_allow_is_a_wrong(frame: dict[str, object]) -> None:
    made = device()
    sent(made)
    made.received(frame)
    assert len(made.wrongs) == 1


@pytest.mark.parametrize("resume", [None, 0, 6])
def test_a_session_that_was_forgotten_is_a_wrong(resume: int | None) -> None:
    made = device()
    sent(made)
    made.received({"ack": 2})
    made.greeted({"resume": resume})
    assert len(made.wrongs) == 1


def test_no_event_has_to_be_refused() -> None:
    made = device(BAD_EVERY)
    made.greeted({"resume": 0, "window": 64})
    sent(made)
    made.received({"ack": BAD_EVERY})
    assert "was acked" in made.wrongs[0]
    assert BAD_EVERY not in made.acked()


# --- the verdict -------------------------------------------------------------------------------------------------------


def row(number: int, position: int | None = None, roll: int = 1, **changed: object) -> Row:
    values = {**readings("torture-1", number), **changed}
    return Row("torture-1", "q", position or number, roll, tuple(values[name] for name in READINGS))


def violations(rows: list[Row], happened: list[tuple[str, int, int]] | None = None, one_way: bool = True, retried: int = 0) -> list[int]:
    made = device(3)
    sent(made)
    if retried:
        made.received({"reject": retried, "retry_ms": 10})
    made.received({"ack": 3})
    if retried:
        sent(made)
        made.received({"ack": 4})
    return [finding.violations for finding in judge([made], rows, made, happened or [], one_way)]


def test_each_property_fails_by_itself() -> None:
    good = [row(1), row(2), row(3)]
    assert violations(good) == [0, 0, 0, 0, 0, 0]
    assert violations(good[:2]) == [1, 0, 0, 0, 0, 0]
    assert violations([*good, row(2, 9)]) == [0, 1, 0, 0, 0, 0]
    assert violations([row(1), row(2), row(3, 2)]) == [0, 1, 0, 0, 0, 0]
    assert violations([row(1), row(2), row(3, text="other")]) == [0, 0, 1, 0, 0, 0]
    assert violations([*good, row(9, id="stranger/1")]) == [0, 0, 1, 0, 0, 0]
    assert violations(good[1:])[3] == 1
    assert violations(good, [("kills", 1, 2)]) == [0, 0, 0, 0, 1, 0]
    assert violations([row(1), row(3, 2), row(2, 3)]) == [0, 0, 0, 0, 0, 1], "taken in another order"


def test_who_came_first_is_told_by_the_rolls_where_there_is_one_way() -> None:
    assert violations([row(1, roll=5), row(2, roll=5), row(3, roll=9)])[5] == 0
    overtaken = [row(1, roll=5), row(2, roll=9), row(3, roll=7)]
    assert violations(overtaken)[5] == 1
    assert violations(overtaken, one_way=False)[5] == 0
    assert violations([row(1), row(3, 2), row(2, 3)], retried=2) == [0, 0, 0, 0, 0, 0], "it came behind because it was asked for again"


def test_payloads_follow_from_the_number() -> None:
    assert events.payload("torture-1", 7) == events.payload("torture-1", 7) != events.payload("torture-1", 8)
    assert events.named(str(readings("torture-1", 7)["id"])) == ("torture-1", 7)
    assert events.named("torture-1") is None


# --- the proxy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weather", ["cut", "stall", "stall_there", "stall_back"])
def test_a_proxy_holds_what_it_is_told_to_hold(weather: Weather) -> None:
    async def check() -> None:
        heard: list[bytes] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                heard.append(data)
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        proxy = Proxy(lambda: server.sockets[0].getsockname()[:2])
        await proxy.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"1")
        assert await reader.read(100) == b"1"
        proxy.set(weather)
        writer.write(b"2")
        answer = asyncio.ensure_future(reader.read(100))
        if weather == "cut":
            with pytest.raises(ConnectionError):
                await answer
        else:
            await asyncio.wait([answer], timeout=0.2)
            assert not answer.done()
            assert heard == ([b"1", b"2"] if weather == "stall_back" else [b"1"])
            proxy.set("fair")
            assert await answer == b"2"
        writer.close()
        server.close()
        await proxy.close()

    asyncio.run(asyncio.wait_for(check(), 30))


def test_a_step_names_itself() -> None:
    assert str(Step(0, "point", 0, "far.1", 2)) == "far.1@2"
    assert str(Step(0, "cut", 1)) == "cut"
