#!/usr/bin/env python3
"""Makes a data set in the shape of sc2.ndjson and DuckDB's answers to the questions of sc2.answers.json.

    generate.py DIR SEED EVENTS

writes DIR/generated.ndjson (EVENTS lines) and DIR/generated.answers.json. The same seed, count and DuckDB version give the same bytes.

The set is untidy on purpose: one player's millisecond repeats, lines are byte-identical to others, lines come hours late,
a property is an integer, a float, null or absent from one event to the next, names differ by case or by Unicode form only.
Events stand on both sides of the ends of hours, days, months and a year. Coordinates and minerals are multiples of 0.25, so that
every sum is exact in whatever order it is made. Instants lie after 1970, where DuckDB's `//` and a calendar's hours agree.
"""

import json
import random
import sys
from datetime import datetime, timezone
from pathlib import Path

import duckdb

EVENTS_MIN = 5_000
"""In fewer events a property may never have a value, and a question about an absent column has no answer."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FIRST_DAY_MS = int(datetime(2023, 12, 30, tzinfo=timezone.utc).timestamp()) * 1000
DAYS = 75
"""From 30 December 2023: over the end of a year, of months and of a 29 February."""

QUESTIONS = {
    "events": "select count(*) from e",
    "players": "select count(distinct player_id) from e",
    "matches": "select count(distinct match) from e",
    "events_by_type": "select event_type, count(*) from e group by 1 order by 2 desc, 1",
    "players_by_type": "select event_type, count(distinct player_id) from e group by 1 order by 1",
    "time_range_ms": "select min(ts_ms), max(ts_ms) from e",
    "top10_players_by_events": "select player_id, count(*) c from e group by 1 order by c desc, 1 limit 10",
    "daily_active_players": "select strftime(to_timestamp(ts_ms/1000.0), '%Y-%m-%d') d, count(distinct player_id) from e group by 1 order by 1",
    "monthly_active_players": "select strftime(to_timestamp(ts_ms/1000.0), '%Y-%m') d, count(distinct player_id) from e group by 1 order by 1",
    "events_per_hour_top20": "select (ts_ms//3600000)*3600000 h, count(*) c from e group by 1 order by c desc, h limit 20",
    "camera_x_sum_avg_min_max": "select sum(x), avg(x), min(x), max(x), count(x) from e where event_type='camera'",
    "resource_trades": "select count(*), sum(minerals), sum(vespene), max(minerals) from e where event_type='resource_trade'",
    "matches_by_race": "select race, count(*) from e where event_type='match_start' group by 1 order by 2 desc, 1",
    "results": "select result, count(*) from e where event_type='match_end' group by 1 order by 2 desc, 1 nulls last",
    "top10_units_born": "select unit, count(*) c from e where event_type='unit_born' group by 1 order by c desc, 1 limit 10",
}

COLUMNS = {
    "player_id": "VARCHAR", "ts_ms": "BIGINT", "event_type": "VARCHAR", "match": "VARCHAR", "race": "VARCHAR",
    "result": "VARCHAR", "unit": "VARCHAR", "x": "DOUBLE", "minerals": "DOUBLE", "vespene": "BIGINT",
}  # fmt: skip
"""What the questions read. Given, not inferred, so that a small set has the types of a large one."""

ODD_PLAYERS = ["o'brien", 'the "one"', "back\\slash", "with space", "ZERG", "zerg", "caf\u00e9", "cafe\u0301", "龍🐉", "100%_", "a,b;c", "--"]
RACES = ["Terran", "Protoss", "Zerg", "Terran Tychus", "terran", ""]
RESULTS = ["Win", "Loss", "Unknown"]
UNITS = ["Larva", "Zergling", "Marine", "Drone", "Probe", "SCV", "Roach", "Overlord", "Broodling", "Zealot", "Stalker", "SCV's", "Ünit", ""]
ABILITIES = ["", "RightClick", "TrainSCV", "CAbil", "CancelSlot", 'Quote"d']
TEXTS = ["gl hf", "it's", 'say "gg"', "日本語 ♥", "tab\tand\nline", "'; drop table events; --", "back\\slash", "$player", "", "x" * 9_000]
MAPS = ["Lost Temple", "Xel'Naga Caverns", "Ødelagt \u201cby\u201d"]

COMMON_TYPES = {
    "camera": 550, "target_point_command": 120, "selection": 100, "get_control_group": 65, "basic_command": 45,
    "target_unit_command": 30, "command_manager_state": 15, "unit_born": 40, "update_target_point_command": 9,
    "unit_died": 8, "unit_type_change": 6, "player_stats": 5, "set_control_group": 4, "update_target_unit_command": 3,
    "unit_init": 3, "unit_done": 3, "add_to_control_group": 2, "upgrade_complete": 2, "chat": 4, "dialog_control": 1,
    "ping": 1, "data_command": 1, "player_leave": 1, "resource_trade": 6,
}  # fmt: skip
RARE_TYPES = ["unit_owner_change", "delete_control_group", "hijack_replay_game"]


def quarter(chance, below):
    """A multiple of 0.25 in 0..below, an integer in a third of the cases."""
    return chance.randrange(below) if chance.random() < 0.33 else chance.randrange(4 * below) / 4


def untidy(chance, properties, name, value):
    """Puts the property, or null in its place, or nothing."""
    fate = chance.random()
    if fate < 0.90:
        properties[name] = value
    elif fate < 0.95:
        properties[name] = None


def properties_of(chance, event_type):
    """The properties of one event but its match, as uneven as replays have them."""
    found = {}
    if event_type == "match_start":
        untidy(chance, found, "name", chance.choice(ODD_PLAYERS))
        untidy(chance, found, "race", chance.choice(RACES))
        found |= {"team": chance.randrange(4), "map": chance.choice(MAPS), "game_type": "1v1"}
        found |= {"build": 16117 + chance.randrange(9), "is_human": chance.random() < 0.9}
    elif event_type == "match_end":
        untidy(chance, found, "result", chance.choice(RESULTS))
        found["team"] = chance.randrange(4)
    elif event_type in ("camera", "target_point_command"):
        untidy(chance, found, "x", quarter(chance, 208))
        untidy(chance, found, "y", quarter(chance, 208))
    elif event_type == "ping":
        found |= {"x": chance.randrange(-400_000, 400_000), "y": chance.randrange(400_000)}
    elif event_type == "resource_trade":
        untidy(chance, found, "minerals", quarter(chance, 3_000))
        untidy(chance, found, "vespene", chance.randrange(3_000))
    elif event_type == "selection":
        found["added"] = chance.randrange(30)
        untidy(chance, found, "units", {chance.choice(UNITS): chance.randrange(9) for _ in range(chance.randrange(4))})
    elif event_type == "chat":
        found |= {"text": chance.choice(TEXTS), "target": chance.choice([0, 2, "allies"]), "to_all": chance.random() < 0.5}
    elif event_type.startswith("unit_") and event_type != "unit_owner_change":
        untidy(chance, found, "unit", chance.choice(UNITS))
        found["unit_id"] = chance.randrange(1 << 53)
        if event_type == "unit_died":
            untidy(chance, found, "killer", chance.choice(ODD_PLAYERS))
    elif event_type == "upgrade_complete":
        found |= {"upgrade": "PylonSkin", "count": chance.randrange(-1, 31)}
    elif event_type == "player_stats":
        # Names that the store uses itself, and names that differ from others by case only.
        found |= {"seq": chance.randrange(99), "properties": "none", "Match": "other", "X": -1, "stats": {"food": [1, 2.5, None]}}
    elif event_type.endswith("_group"):
        found["group"] = chance.randrange(10)
    if event_type.endswith("_command"):
        found["ability"] = chance.choice(ABILITIES)
    if event_type == "target_unit_command":
        untidy(chance, found, "target_unit", chance.choice(UNITS))
    return found


def line_of(chance, player, ts_ms, event_type, match):
    """One event as JSON text: keys in either order, blanks or none, escapes or plain UTF-8."""
    event = {"player_id": player, "ts_ms": ts_ms, "event_type": event_type}
    untidy(chance, event, "match", match)
    event |= properties_of(chance, event_type)
    if chance.random() < 0.1:
        event = dict(reversed(event.items()))
    separators = (", ", ": ") if chance.random() < 0.1 else (",", ":")
    return json.dumps(event, ensure_ascii=chance.random() < 0.5, separators=separators)


def match_lines(chance, number, players):
    """One match: its starts, a walk through time with many steps of no length, its ends."""
    match = f"gen-{number:04x}"
    # Two days in three, and the evenings more than the mornings, so that days and hours stay empty.
    day = chance.choice([day for day in range(DAYS) if day % 3 != 1])
    ts_ms = FIRST_DAY_MS + day * DAY_MS + chance.choice([7, 18, 19, 23, 23]) * HOUR_MS + chance.randrange(HOUR_MS)
    lines = [line_of(chance, player, ts_ms, "match_start", match) for player in players]
    types = chance.choices(list(COMMON_TYPES), list(COMMON_TYPES.values()), k=chance.randrange(20, 400))
    for event_type in types:
        ts_ms += chance.choice([0, 0, 0, 1, 45, 800, 20_000])
        lines.append(line_of(chance, chance.choice(players), ts_ms, event_type, match))
        while chance.random() < 0.03:
            lines.append(lines[-1])
    lines += [line_of(chance, player, ts_ms, "match_end", match) for player in players]
    return lines


def edge_lines(chance):
    """Each type once, by players of one event, just before and just after the ends of hours, days, months and the year."""
    edges_ms = [FIRST_DAY_MS + day * DAY_MS + hour * HOUR_MS for day, hour in [(2, 0), (33, 0), (61, 0), (62, 0), (10, 5)]]
    lines = []
    for number, event_type in enumerate([*COMMON_TYPES, *RARE_TYPES, "match_start", "match_end"]):
        ts_ms = edges_ms[number % len(edges_ms)] - number // len(edges_ms) % 2
        lines.append(line_of(chance, f"once-{number}", ts_ms, event_type, "gen-edge"))
    return lines


def generate(seed, count):
    """`count` lines; the order is that of a file into which several servers wrote."""
    chance = random.Random(seed)
    regulars = ODD_PLAYERS + [f"gen-{number}" for number in range(max(20, count // 600))]
    lines = edge_lines(chance)
    number = 0
    while len(lines) < count:
        # The first few of the list play most.
        players = sorted({regulars[int(len(regulars) * chance.random() ** 2)] for _ in range(chance.randrange(1, 5))})
        lines += match_lines(chance, number, players)
        number += 1
    del lines[count:]
    for index in range(count):
        late = chance.random()
        if late < 0.04:
            other = min(count - 1, index + chance.randrange(1, 20))
        elif late < 0.05:
            other = chance.randrange(count)
        else:
            continue
        lines[index], lines[other] = lines[other], lines[index]
    return lines


def answers_of(path):
    """DuckDB's answers to the questions about the events in `path`, in the shape of sc2.answers.json."""
    duck = duckdb.connect()
    duck.execute("set TimeZone = 'UTC'")
    duck.execute(f"create table e as select * from read_json(?, format = 'newline_delimited', columns = {COLUMNS})", [str(path)])
    answers = {"engine": f"duckdb {duckdb.__version__}"}
    for name, sql in QUESTIONS.items():
        answers[name] = {"sql": sql, "rows": duck.execute(sql).fetchall()}
    # Events stand at both ends of the range: the first belongs to it, the last does not.
    player_id, from_ms, to_ms = duck.execute(
        "select player_id, quantile_disc(ts_ms, 0.25), quantile_disc(ts_ms, 0.75) from e group by 1 order by count(*) desc, 1 limit 1"
    ).fetchone()
    assert from_ms < to_ms, f"the range of {player_id} is empty: {from_ms}..{to_ms}"
    by_type = duck.execute(
        "select event_type, count(*) from e where player_id = ? and ts_ms >= ? and ts_ms < ? group by 1 order by 1",
        [player_id, from_ms, to_ms],
    ).fetchall()
    count = sum(count for _, count in by_type)
    answers["player_range"] = {"player_id": player_id, "from_ms": from_ms, "to_ms": to_ms, "count": count, "by_type": by_type}
    return answers


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: generate.py DIR SEED EVENTS")
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if count < EVENTS_MIN:
        sys.exit(f"{count} events are fewer than {EVENTS_MIN}")
    path = folder / "generated.ndjson"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in generate(seed, count))
    text = json.dumps(answers_of(path), ensure_ascii=False, indent=1)
    (folder / "generated.answers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
