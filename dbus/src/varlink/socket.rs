use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use zlink::connection::socket::{self, ReadResult, UnixSocket};

/// Longest message that is read, in bytes. What the interfaces take fits many times.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024;

/// A socket of zlink's that hands out no message of more than [`MESSAGE_MAX`] bytes. zlink itself
/// holds up to 100 MiB of each peer, and then drops the connection.
#[derive(Debug)]
pub(super) struct Bounded(pub(super) zlink::tokio::unix::Stream);

impl socket::Socket for Bounded {
    type ReadHalf = BoundedRead<<zlink::tokio::unix::Stream as socket::Socket>::ReadHalf>;
    type WriteHalf = <zlink::tokio::unix::Stream as socket::Socket>::WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (read, write) = self.0.split();
        let read = BoundedRead {
            socket: read,
            cutter: Cutter::default(),
            cut: AtomicBool::new(false),
        };
        (read, write)
    }
}

/// What is read of a [`Bounded`] socket.
#[derive(Debug)]
pub(super) struct BoundedRead<R> {
    socket: R,
    cutter: Cutter,
    cut: AtomicBool,
}

impl<R> BoundedRead<R> {
    /// Whether a message was cut since the last time that this was asked. Such a message is no JSON.
    pub(super) fn was_cut(&self) -> bool {
        self.cut.swap(false, Ordering::Relaxed)
    }
}

impl<R: socket::ReadHalf> socket::ReadHalf for BoundedRead<R> {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        loop {
            // No method takes descriptors: what comes along is closed here.
            let length = self.socket.read(buffer).await?.bytes_read();
            let Some(read) = buffer.get_mut(..length) else {
                return Ok(ReadResult::new(0));
            };
            let (kept, cut) = self.cutter.cut(read);
            if cut {
                self.cut.store(true, Ordering::Relaxed);
            }
            if kept > 0 || length == 0 {
                return Ok(ReadResult::new(kept));
            }
        }
    }
}

impl<R: AsFd> AsFd for BoundedRead<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<R: AsFd> UnixSocket for BoundedRead<R> {}

/// Never valid in JSON, inside of strings or outside.
const BROKEN: u8 = 0x01;

/// Ends messages where they become too long. It keeps nothing of them.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// Bytes of the present message so far.
    length: usize,
}

impl Cutter {
    /// Leaves in place what is handed on of `bytes`, which follow those of earlier calls, and says how
    /// many these are and whether a message was cut: it then ends, broken, with the byte after the
    /// longest length.
    pub(crate) fn cut(&mut self, bytes: &mut [u8]) -> (usize, bool) {
        let mut kept = 0;
        let mut cut = false;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            let handed_on = if byte == 0 {
                let ended_already = self.length > MESSAGE_MAX + 1;
                self.length = 0;
                (!ended_already).then_some(0)
            } else {
                self.length = self.length.saturating_add(1);
                match self.length.checked_sub(MESSAGE_MAX) {
                    None | Some(0) => Some(byte),
                    Some(1) => {
                        cut = true;
                        Some(BROKEN)
                    }
                    Some(2) => Some(0),
                    Some(_) => None,
                }
            };
            if let Some(byte) = handed_on {
                bytes[kept] = byte;
                kept += 1;
            }
        }
        (kept, cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a stream that is read `step` bytes at a time, message by message.
    fn cut(stream: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::default();
        let mut all = Vec::new();
        for part in stream.chunks(step) {
            let mut part = part.to_vec();
            let (kept, _) = cutter.cut(&mut part);
            all.extend_from_slice(&part[..kept]);
        }
        all.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn only_a_message_that_is_too_long_is_cut() {
        for extra in [0, 1, 2, 3, 1000, 3 * MESSAGE_MAX] {
            let long = vec![b'x'; MESSAGE_MAX + extra];
            let stream = [b"{}\0", &long[..], b"\0{\"method\":\"a.b\"}\0"].concat();
            for step in [1, 255, 256, MESSAGE_MAX, stream.len()] {
                let messages = cut(&stream, step);
                assert_eq!(messages.len(), 4, "{extra} {step}");
                assert_eq!(messages[0], b"{}");
                assert_eq!(messages[2], b"{\"method\":\"a.b\"}");
                assert_eq!(messages[3], b"");
                let cut = &messages[1];
                if extra == 0 {
                    assert_eq!(*cut, long);
                } else {
                    assert_eq!(cut.len(), MESSAGE_MAX + 1);
                    assert_eq!(cut.last(), Some(&BROKEN));
                }
            }
        }
    }
}
