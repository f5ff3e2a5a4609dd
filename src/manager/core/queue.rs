//! Those who want a key, in the order in which they asked.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Patience, RequestId};
use crate::key::Mode;

#[derive(Debug)]
pub(super) struct Request<R> {
    pub(super) id: RequestId,
    pub(super) mode: Mode,
    pub(super) patience: Patience,
    /// Whether a session was lost over it.
    pub(super) tried_again: bool,
    pub(super) since: Instant,
    pub(super) caller: R,
}

/// The requests for one key.
///
/// Most keys that are held have none: then it takes up no more than a pointer.
#[derive(Debug)]
pub(super) struct Queue<R>(Option<Box<Requests<R>>>);

#[derive(Debug)]
struct Requests<R> {
    /// In the order of their numbers, which is that of their arrival.
    all: VecDeque<Request<R>>,
    /// How many of them do not wait. They are answered soon, and so are near the end.
    impatient: usize,
    /// How often the key's place at the server was given to another key since it was held.
    places_lost: u32,
}

impl<R> Queue<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there is somebody who waits.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.as_ref().is_some_and(|requests| requests.impatient < requests.all.len())
    }

    pub(super) fn head(&self) -> Option<&Request<R>> {
        self.0.as_ref().and_then(|requests| requests.all.front())
    }

    pub(super) fn push(&mut self, request: Request<R>) {
        let requests = self.0.get_or_insert_default();
        requests.impatient += usize::from(request.is_impatient());
        requests.all.push_back(request);
    }

    pub(super) fn pop(&mut self) -> Option<Request<R>> {
        self.take(0)
    }

    /// Takes out the request of this number, if it is there.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Request<R>> {
        let at = self.0.as_ref()?.all.binary_search_by_key(&id, |request| request.id).ok()?;
        self.take(at)
    }

    /// Takes out, one after the other, those who do not wait and of whom this is true. Beginning at the end,
    /// where they are, it need not go through all who wait.
    pub(super) fn take_impatient(
        &mut self,
        condition: impl Fn(&Request<R>) -> bool,
        mut each: impl FnMut(R),
    ) {
        let Some(requests) = &self.0 else { return };
        let (mut left, mut at) = (requests.impatient, requests.all.len());
        while left > 0 && at > 0 {
            at -= 1;
            let request = self.0.as_ref().and_then(|requests| requests.all.get(at));
            let Some(request) = request.filter(|request| request.is_impatient()) else { continue };
            left -= 1;
            if condition(request) {
                self.take(at).into_iter().for_each(|request| each(request.caller));
            }
        }
    }

    /// Remembers that a session was lost over those who are there.
    pub(super) fn mark_tried(&mut self) {
        for request in self.0.iter_mut().flat_map(|requests| &mut requests.all) {
            request.tried_again = true;
        }
    }

    pub(super) fn places_lost(&self) -> u32 {
        self.0.as_ref().map_or(0, |requests| requests.places_lost)
    }

    /// The key's place at the server is for another key.
    pub(super) fn lose_place(&mut self) {
        if let Some(requests) = &mut self.0 {
            requests.places_lost = requests.places_lost.saturating_add(1);
        }
    }

    /// The key's turn has come.
    pub(super) fn forget_lost_places(&mut self) {
        if let Some(requests) = &mut self.0 {
            requests.places_lost = 0;
        }
    }

    fn take(&mut self, at: usize) -> Option<Request<R>> {
        let requests = self.0.as_mut()?;
        let request = requests.all.remove(at)?;
        requests.impatient -= usize::from(request.is_impatient());
        if requests.all.is_empty() {
            self.0 = None;
        }
        Some(request)
    }
}

#[cfg(test)]
impl<R> Queue<R> {
    pub(super) fn has_impatient(&self) -> bool {
        self.0.as_ref().is_some_and(|requests| requests.impatient > 0)
    }
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self(None)
    }
}

impl<R> Default for Requests<R> {
    fn default() -> Self {
        Self { all: VecDeque::new(), impatient: 0, places_lost: 0 }
    }
}

impl<R> Request<R> {
    pub(super) fn is_impatient(&self) -> bool {
        self.patience == Patience::None
    }
}
