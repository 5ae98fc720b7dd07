use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What has been found and read so far; shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes of the files to be read.
    pub(super) bytes_found: AtomicU64,
    /// Files whose digest is known.
    pub(super) files_done: AtomicU64,
    /// Bytes of them that are read.
    pub(super) bytes_done: AtomicU64,
    /// Are all directories read?
    pub(super) all_found: AtomicBool,
}

/// A line on the terminal while files are read; nothing where nobody sees it.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// On standard error, if that is a terminal and `shown`.
    pub(super) fn new(shown: bool) -> Self {
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{bar:24} {msg}, {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// Shows the counters as they are now.
    pub(super) fn show(&self, counters: &Counters) {
        let (done, found) = (&counters.bytes_done, &counters.bytes_found);
        let (done, found) = (done.load(Relaxed), found.load(Relaxed));
        self.0.set_length(found.max(done));
        self.0.set_position(done);
        let so_far = if counters.all_found.load(Relaxed) {
            ""
        } else {
            " found so far"
        };
        self.0.set_message(format!(
            "{} files; {} of {}{so_far}",
            HumanCount(counters.files_done.load(Relaxed)),
            HumanBytes(done),
            HumanBytes(found),
        ));
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}
