#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| troth_core::fuzz::boot_log_by_policy(data));
