//! Events as lines of JSON, flat: what `galoo import` and any other loader reads.

use galoo_proto::value::Event;

use crate::json::{push_int, push_text};

/// Appends an event as one line: `player_id`, `ts_ms`, `event_type`, then its properties.
pub fn push_line(out: &mut String, event: &Event) {
    out.push_str("{\"player_id\":");
    push_text(out, &event.player_id);
    out.push_str(",\"ts_ms\":");
    push_int(out, event.event_time_ms);
    out.push_str(",\"event_type\":");
    push_text(out, &event.event_type);
    match event.properties.strip_prefix('{').map(str::trim_start) {
        None | Some("}") => out.push('}'),
        Some(members) => {
            out.push(',');
            out.push_str(members);
        }
    }
    out.push('\n');
}
