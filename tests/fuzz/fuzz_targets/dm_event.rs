#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| troth_core::fuzz::dm_event(data));
