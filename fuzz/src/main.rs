//! The fuzzer: `GALOO_FUZZ` names what it attacks, its arguments are libFuzzer's.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<galoo_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("GALOO_FUZZ").unwrap_or_default();
    let known = galoo_fuzz::TARGETS.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("GALOO_FUZZ is {name:?}; it must be one of {:?}", galoo_fuzz::names())).1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
