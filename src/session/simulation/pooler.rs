//! What stands before the server: which of its processes the session has now, if any.

use super::server::{ELSEWHERE, HOME, Process};

pub(super) struct Pooler {
    /// The process that holds the session's locks.
    pub(super) home: Process,
    /// Another one, that the session may get instead.
    elsewhere: Process,
    is_elsewhere: bool,
    /// Whether there is no process for a transaction that begins now.
    pub(super) is_empty: bool,
    /// When there is one again.
    pub(super) fills_at: u64,
    /// How long the last transaction waited for one.
    pub(super) queued_for: u64,
}

impl Pooler {
    pub(super) fn new() -> Self {
        Self {
            home: Process::new(HOME),
            elsewhere: Process::new(ELSEWHERE),
            is_elsewhere: false,
            is_empty: false,
            fills_at: 0,
            queued_for: 0,
        }
    }

    /// Lends a process to a transaction.
    pub(super) fn lend(&mut self) {
        self.home = Process::new(self.home.id() + 1);
    }

    /// Moves the session to the other process.
    pub(super) fn swap(&mut self) {
        self.is_elsewhere = !self.is_elsewhere;
    }

    pub(super) fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// The process that the session has.
    pub(super) fn process(&mut self) -> &mut Process {
        if self.is_elsewhere { &mut self.elsewhere } else { &mut self.home }
    }

    /// Whether the process that the session does not have leaves the lock to the one that it has.
    pub(super) fn leaves_lock(&self) -> bool {
        let unused = if self.is_elsewhere { &self.home } else { &self.elsewhere };
        unused.held() == 0
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.home.held() == 0 && self.elsewhere.held() == 0
    }
}
