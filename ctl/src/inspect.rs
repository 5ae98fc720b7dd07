/// `inspect quote`.
mod quote;

pub(crate) use quote::run as quote;
