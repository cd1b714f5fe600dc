//! Galoo under faults.
//!
//! The chaos suite and the simulator grow here; today the crate is a room with its name on the door. Crash tests of one
//! node live beside the server, in `server/tests`.
