-- The questions of *.answers.json, in Galoo's SQL (DataFusion) over the table events.
--
-- One translation for each entry, under the entry's name. An entry that asks for a player's time range has two: NAME.count
-- and NAME.by_type, with $player (quoted by the test), $from_ms and $to_ms filled in; the range is $from_ms..$to_ms, without its end.
-- Nulls stand last in ascending order here and in DuckDB alike.

-- name: events
select count(*) from events

-- name: players
select count(distinct player_id) from events

-- name: matches
select count(distinct "match") from events

-- name: events_by_type
select event_type, count(*) from events group by 1 order by 2 desc, 1

-- name: players_by_type
select event_type, count(distinct player_id) from events group by 1 order by 1

-- name: time_range_ms
select arrow_cast(min(event_time), 'Int64'), arrow_cast(max(event_time), 'Int64') from events

-- name: top10_players_by_events
select player_id, count(*) c from events group by 1 order by c desc, 1 limit 10

-- name: daily_active_players
select to_char(event_time, '%Y-%m-%d') d, count(distinct player_id) from events group by 1 order by 1

-- name: monthly_active_players
select to_char(event_time, '%Y-%m') d, count(distinct player_id) from events group by 1 order by 1

-- name: events_per_hour_top20
select to_unixtime(date_trunc('hour', event_time)) * 1000 h, count(*) c from events group by 1 order by c desc, h limit 20

-- name: camera_x_sum_avg_min_max
select sum(x), avg(x), min(x), max(x), count(x) from events where event_type = 'camera'

-- name: resource_trades
select count(*), sum(minerals), sum(vespene), max(minerals) from events where event_type = 'resource_trade'

-- name: matches_by_race
select race, count(*) from events where event_type = 'match_start' group by 1 order by 2 desc, 1

-- name: results
select result, count(*) from events where event_type = 'match_end' group by 1 order by 2 desc, 1 nulls last

-- name: top10_units_born
select unit, count(*) c from events where event_type = 'unit_born' group by 1 order by c desc, 1 limit 10

-- name: player_range.count
select count(*) from events
where player_id = $player and event_time >= to_timestamp_millis($from_ms) and event_time < to_timestamp_millis($to_ms)

-- name: player_range.by_type
select event_type, count(*) from events
where player_id = $player and event_time >= to_timestamp_millis($from_ms) and event_time < to_timestamp_millis($to_ms)
group by 1 order by 1
