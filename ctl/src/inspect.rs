/// Events of the device mapper in an IMA list.
mod device_mapper;
/// `inspect eventlog`.
mod eventlog;
/// `inspect ima`.
mod ima;
/// `inspect quote`.
mod quote;

pub(crate) use eventlog::run as eventlog;
pub(crate) use ima::run as ima;
pub(crate) use quote::{quoted_values, run as quote};
