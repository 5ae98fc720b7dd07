#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| troth_core::fuzz::ima_signature(data));
