#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| troth_archive::fuzz::rpm(data));
