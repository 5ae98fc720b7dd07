#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| troth_ipc::fuzz::varlink_messages(data));
