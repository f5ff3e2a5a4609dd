//! A number of permits that all programs of a database share: [`Semaphore`], a recipe on the manager.
//!
//! Each permit is an advisory lock on a key of its own, its slot. What is there to make of that more than a
//! loop over the slots:
//!
//! ```text
//!  acquire ──▶ the process's queue ──▶ its head ──┬── a permit is handed over within the process ──▶ Permit
//!                                                 │
//!                     tries the slots, if nobody ─┼── one is free ────────────────────────────────▶ Permit
//!                     has the turnstile           │ none is
//!                                                 ▼
//!                     waits for the turnstile, in the server's queue
//!                                                 │ has it
//!                                                 ▼
//!                     tries the slots every now and then ── one is free: leaves the turnstile ────▶ Permit
//! ```
//!
//! Slots have no queue at the server that would do: whoever waits for one of them waits for that one. So
//! there is a key on which to wait for one's turn, the *turnstile*. Of a whole fleet, only whoever has it
//! tries slots again and again, and nobody overtakes: a try takes no slot while another session has the
//! turnstile. Of a process, only the head of its queue wants the turnstile. A slot of a process that is gone
//! is free as soon as the server knows, and is found by the next try.
//!
//! A permit that is given back goes to the head of the process's queue, within the bounds of the
//! manager's [`hand_overs`](crate::LockManagerBuilder::hand_overs), and to the server otherwise. While
//! these bounds last, but no longer than for 100 ms, a head expects the next permit from within its
//! process before it goes to the turnstile: else every permit that is handed over would end a wait at the
//! server. The turnstile goes from head to head, until a slot was found.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::key::{Key, Kind};
use crate::manager::{Awaited, Guard, LockManager};
use crate::session::{Choice, Range};
use crate::wait::{after, now};

/// Most permits that a semaphore can have.
const PERMITS_MAX: i32 = 1_000;

/// The second number of the turnstile's key. Those of slots are from 0 on.
const TURNSTILE: i32 = -1;

/// Pause before slots are tried again by whoever has the turnstile. Each is up to twice as long as the one
/// before, up to a limit.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);
const TRY_AGAIN_AFTER_MAX: Duration = Duration::from_millis(100);

/// For how long the head of a queue expects a permit from within its process at most, before it waits at the
/// server.
const EXPECT_HAND_OVER_FOR_MAX: Duration = Duration::from_millis(100);

/// A number of permits, shared by all programs that use the same name in the same database: for a resource
/// that bears so many users at a time.
///
/// It is a handle: clones share one queue. It comes from [`LockManager::semaphore`].
///
/// # Who is served when
///
/// The tasks of a process get permits in the order in which they [`acquire`](Semaphore::acquire) them. A
/// permit that is given back goes to the next task of the process without the server being asked, within the
/// bounds of [`hand_overs`](crate::LockManagerBuilder::hand_overs). Otherwise it is there for the process
/// whose turn it is: processes queue at the server. Whichever is first tries the slots again after 5 ms, then
/// after up to twice as long each time, up to 100 ms; all others wait without asking. So a permit that another
/// process gives back is found within 100 ms. The permits of a process that died come back when the server
/// notices its end, at the latest after [`orphan_timeout`](crate::Config::orphan_timeout).
///
/// A future that waits and is not polled any more, but not dropped, holds up those behind it.
///
/// # How many permits
///
/// Every process has to name the same number, from 1 to 1,000. While it uses a semaphore, each has a lock
/// that says which number it goes by; and once it has, it looks for other numbers. If there is one, its
/// calls fail with [`ErrorKind::Config`](crate::ErrorKind::Config), naming both. So when the number
/// changes from one release of a program to the next, instances of the new one get no permit before the
/// last `Semaphore` of the old one is gone. Give the new number a new name, if for that time it does not
/// matter how many permits both have together.
///
/// # Keys
///
/// The keys of a semaphore are pairs. The first number is its class: the upper and the lower half of
/// [`Key::from_name`] of its name, combined by exclusive or. The second number says what the key is for, and
/// so whoever keeps to this table can take part:
///
/// | second number | what for |
/// | --- | --- |
/// | from 0 to n - 1 | the slots: locked exclusively by who has the permit |
/// | -1 | the turnstile: locked exclusively by who waits for a permit |
/// | -1 - n | locked shared by who goes by n permits |
///
/// A class has 32 bits. Of 1,000 names, two have the same class with a chance of about 1 in 8,600; their
/// semaphores are one then, and say so if they differ in the number of permits.
///
/// # Costs
///
/// To find a slot takes one round trip, however many there are. Beside its slots, a semaphore that is in use
/// holds one more lock, and one in a process that waits has a session wait.
///
/// Through a transaction pooler, each permit takes a session and a server connection of the pool, and so does
/// the semaphore itself, and the wait.
///
/// # Examples
///
/// The repository's `cargo run --example manager_resource_pool` runs as it stands.
///
/// ```no_run
/// use pglock::{Config, LockManager};
///
/// # async fn render() {}
/// # async fn example() -> pglock::Result<()> {
/// let manager = LockManager::new(Config::from_env()?);
/// let renderers = manager.semaphore("renderers", 5);
/// let permit = renderers.acquire().await?;
/// println!("renderer {}", permit.slot());
/// permit.hold(render()).await?;
/// permit.release().await
/// # }
/// ```
#[derive(Clone)]
pub struct Semaphore {
    shared: Arc<Shared>,
}

impl LockManager {
    /// A semaphore of this name with so many permits, from 1 to 1,000, which all who use it have to name.
    /// Nothing is connected yet, and a number that is out of range is told by the first call.
    ///
    /// Make one for each name, and clone it: the tasks of one queue together, those of two compete.
    #[must_use]
    pub fn semaphore(&self, name: &str, permits: u32) -> Semaphore {
        let (hand_overs, hand_overs_for) = self.hand_over_limits();
        let shared = Shared {
            manager: self.clone(),
            name: name.into(),
            class: class_of(name),
            permits,
            hand_overs,
            hand_overs_for,
            head: tokio::sync::Mutex::default(),
            declared: tokio::sync::Mutex::default(),
            queue: Mutex::new(Queue {
                waiting: 0,
                handed_over: VecDeque::new(),
                permits: 0,
                hand_overs: 0,
                since: now(),
                trouble: None,
            }),
            offered: Notify::new(),
            freed: Notify::new(),
        };
        Semaphore { shared: Arc::new(shared) }
    }
}

impl Semaphore {
    /// Waits for a permit, for as long as it takes: also for the server to come back, if it cannot be reached
    /// for a while.
    ///
    /// # Errors
    ///
    /// As [`LockManager::lock`]; and [`ErrorKind::Config`](crate::ErrorKind::Config) if the number of
    /// permits is out of range, or another one than somebody else goes by.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future gives up the place in the queue; a permit that was got meanwhile is given back.
    pub async fn acquire(&self) -> Result<Permit> {
        self.wait().await
    }

    /// Waits for a permit until this much time has passed: `None` if there was none by then.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Semaphore::acquire); and, if the time has passed and the server could not be reached,
    /// why not.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Semaphore::acquire).
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<Option<Permit>> {
        if timeout.is_zero() {
            return self.try_acquire().await;
        }
        let mut waiting = pin!(self.wait());
        // A time too far for the clock is no limit.
        let Some(until) = after(timeout) else { return waiting.await.map(Some) };
        match self.shared.manager.timeout_at(until, waiting.as_mut()).await {
            Ok(waited) => waited.map(Some),
            // What it waits for is not given up yet: the manager knows of it.
            Err(_) => match self.shared.trouble() {
                Some(error) => Err(self.shared.about(error)),
                None => Ok(None),
            },
        }
    }

    /// Takes a permit if there is one: `None` if there is none, or others wait for one, in this process or
    /// elsewhere.
    ///
    /// # Errors
    ///
    /// As [`LockManager::try_lock`]; and [`ErrorKind::Config`](crate::ErrorKind::Config) as for
    /// [`acquire`](Semaphore::acquire).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a permit that was got meanwhile is given back.
    pub async fn try_acquire(&self) -> Result<Option<Permit>> {
        if self.shared.queue().waiting > 0 {
            return Ok(None);
        }
        let tried = self.shared.try_slots(Some(TURNSTILE)).await;
        let tried = tried.map_err(|error| self.shared.about(error))?;
        Ok(tried.map(|guard| self.permit(guard)))
    }

    async fn wait(&self) -> Result<Permit> {
        let shared = &self.shared;
        let _waiting = Waiting::begin(shared);
        let mut turnstile = shared.head.lock().await;
        let mut asking = pin!(shared.get_from_server(&mut turnstile));
        loop {
            let mut offered = pin!(shared.offered.notified());
            offered.as_mut().enable();
            if let Some(guard) = shared.take_handed_over() {
                if guard.is_there().await {
                    return Ok(self.permit(guard));
                }
                // It was lost meanwhile.
                continue;
            }
            let asked = poll_fn(|cx| match offered.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => asking.as_mut().poll(cx).map(Some),
            });
            if let Some(asked) = asked.await {
                let guard = asked.map_err(|error| shared.about(error))?;
                return Ok(self.permit(guard));
            }
        }
    }

    fn permit(&self, guard: Guard) -> Permit {
        let slot = match guard.key().kind() {
            Kind::Pair(_, object) => u32::try_from(object).unwrap_or_default(),
            Kind::Bigint(_) => 0,
        };
        self.shared.queue().permits += 1;
        Permit { guard, slot, semaphore: Arc::clone(&self.shared) }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("name", &self.shared.name)
            .field("permits", &self.shared.permits)
            .finish_non_exhaustive()
    }
}

/// The first number of all keys of a semaphore.
fn class_of(name: &str) -> i32 {
    let hash = match Key::from_name(name).kind() {
        Kind::Bigint(hash) => hash,
        Kind::Pair(..) => 0,
    };
    let [u0, u1, u2, u3, l0, l1, l2, l3] = hash.to_be_bytes();
    i32::from_be_bytes([u0, u1, u2, u3]) ^ i32::from_be_bytes([l0, l1, l2, l3])
}

/// What clones and permits of a semaphore have in common.
struct Shared {
    manager: LockManager,
    name: String,
    class: i32,
    permits: u32,
    hand_overs: u32,
    hand_overs_for: Duration,
    /// Whoever has this is the head of the queue, and with it may have the turnstile.
    head: tokio::sync::Mutex<Option<Guard>>,
    /// Says at the server which number of permits this process goes by.
    declared: tokio::sync::Mutex<Option<Guard>>,
    queue: Mutex<Queue>,
    /// A permit was handed over.
    offered: Notify,
    /// A permit was given back to the server, or the next one will be.
    freed: Notify,
}

struct Queue {
    /// How many wait, the head included.
    waiting: usize,
    /// What is for those who wait: no more than they are.
    handed_over: VecDeque<Guard>,
    /// How many permits the process has in use.
    permits: usize,
    /// How often a permit was handed over since the server granted one.
    hand_overs: u32,
    /// When that was.
    since: Instant,
    /// Why slots could not be tried, if they could not be when they were to be last. Nothing if nobody waits.
    trouble: Option<Error>,
}

impl Shared {
    /// Gets a slot from the server, for the head of the queue.
    async fn get_from_server(&self, turnstile: &mut Option<Guard>) -> Result<Guard> {
        if turnstile.is_none() {
            if let Some(guard) = self.try_and_note(Some(TURNSTILE)).await? {
                return Ok(guard);
            }
            self.expect_hand_over().await;
        }
        let mut pause = TRY_AGAIN_AFTER;
        loop {
            if !turnstile.as_ref().is_some_and(Guard::is_held) {
                *turnstile = None;
                *turnstile = Some(self.manager.lock(self.turnstile()).await?);
                pause = TRY_AGAIN_AFTER;
            }
            if let Some(guard) = self.try_and_note(None).await? {
                *turnstile = None;
                return Ok(guard);
            }
            // It is news that a slot of this process was given back.
            let until = now() + pause * (50 + random_up_to(51)) / 100;
            let _ = self.manager.timeout_at(until, self.freed.notified()).await;
            pause = (pause * 2).min(TRY_AGAIN_AFTER_MAX);
        }
    }

    /// As [`try_slots`](Self::try_slots), for who waits until the server can be reached again.
    async fn try_and_note(&self, unless_taken: Option<i32>) -> Result<Option<Guard>> {
        match self.try_slots(unless_taken).await {
            Ok(guard) => {
                self.queue().trouble = None;
                Ok(guard)
            }
            Err(error) if error.may_pass() => {
                self.queue().trouble = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Why nobody of this process gets a permit, if that is not for want of one. While the head of the queue
    /// waits at the server, that is the last word.
    fn trouble(&self) -> Option<Error> {
        match self.manager.awaited(self.turnstile()) {
            Awaited::AtServer => None,
            Awaited::Untried(Some(error)) => Some(error),
            Awaited::Untried(None) | Awaited::ByNobody => self.queue().trouble.clone(),
        }
    }

    fn turnstile(&self) -> Key {
        Key::pair(self.class, TURNSTILE)
    }

    /// Takes a slot if one is free, from a random one on.
    async fn try_slots(&self, unless_taken: Option<i32>) -> Result<Option<Guard>> {
        let permits = self.permits()?;
        if !self.declare(permits).await? {
            return Ok(None);
        }
        let start = i32::try_from(random_up_to(self.permits)).unwrap_or_default();
        let objects = (start..permits).chain(0..start).collect();
        let choice = Choice { class: self.class, objects, unless_taken };
        let Some(guard) = self.manager.try_any(choice).await? else { return Ok(None) };
        // The session that said so may have been lost meanwhile, and another one have got the slot.
        if !self.declare(permits).await? {
            return Ok(None);
        }
        let mut queue = self.queue();
        queue.hand_overs = 0;
        queue.since = now();
        Ok(Some(guard))
    }

    /// The number of permits, if there can be so many.
    fn permits(&self) -> Result<i32> {
        let permits = i32::try_from(self.permits).ok();
        permits.filter(|permits| (1..=PERMITS_MAX).contains(permits)).ok_or_else(|| {
            Error::config(format!("{} permits; it can have 1 to {PERMITS_MAX}", self.permits))
        })
    }

    /// Says at the server how many permits there are, and sees to it that nobody says otherwise. The result
    /// is whether that could be said.
    async fn declare(&self, permits: i32) -> Result<bool> {
        let mut declared = self.declared.lock().await;
        if declared.as_ref().is_some_and(Guard::is_held) {
            return Ok(true);
        }
        *declared = None;
        let number = TURNSTILE - permits;
        let key = Key::pair(self.class, number);
        let Some(guard) = self.manager.try_lock_shared(key).await? else { return Ok(false) };
        // Of two who differ, whoever is the later to look finds the other one.
        let range =
            Range { class: self.class, first: TURNSTILE - PERMITS_MAX, last: TURNSTILE - 1 };
        let others = guard.locked(range).await?;
        if let Some(other) = others.into_iter().find(|other| *other != number) {
            let elsewhere = TURNSTILE - other;
            return Err(Error::config(format!(
                "{permits} permits here, and {elsewhere} where it is in use; name the same number \
                 everywhere, or another semaphore"
            )));
        }
        *declared = Some(guard);
        Ok(true)
    }

    /// Waits for as long as a permit of this process would be handed over.
    async fn expect_hand_over(&self) {
        let until = {
            let queue = self.queue();
            let hands_over = queue.permits > 0 && queue.hand_overs < self.hand_overs;
            hands_over.then(|| queue.since.checked_add(self.hand_overs_for)).flatten()
        };
        let latest = now() + EXPECT_HAND_OVER_FOR_MAX;
        if let Some(until) = until.map(|until| until.min(latest)) {
            let _ = self.manager.timeout_at(until, self.freed.notified()).await;
        }
    }

    fn take_handed_over(&self) -> Option<Guard> {
        self.queue().handed_over.pop_front()
    }

    /// A permit is given back: hands it over, or returns what is to be released.
    fn hand_over(&self, guard: Guard) -> Option<Guard> {
        let mut queue = self.queue();
        queue.permits -= 1;
        let may_go_on = queue.hand_overs < self.hand_overs
            && now().saturating_duration_since(queue.since) < self.hand_overs_for;
        if !may_go_on || queue.handed_over.len() >= queue.waiting || !guard.is_held() {
            return Some(guard);
        }
        queue.hand_overs += 1;
        queue.handed_over.push_back(guard);
        drop(queue);
        self.offered.notify_one();
        None
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics while it holds the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn about(&self, error: Error) -> Error {
        error.context(format!("semaphore {:?}", self.name))
    }
}

/// Somebody is in the queue, for as long as this lives.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.queue().waiting += 1;
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.waiting -= 1;
        if queue.waiting == 0 {
            queue.trouble = None;
        }
        let (waiting, is_surplus) = (queue.waiting, queue.handed_over.len() > queue.waiting);
        let surplus = if is_surplus { queue.handed_over.pop_back() } else { None };
        drop(queue);
        if let Some(surplus) = surplus {
            let _freed = Freed(self.0);
            drop(surplus);
        }
        if waiting == 0 {
            // If somebody has come meanwhile, the turnstile is for that one.
            if let Ok(mut turnstile) = self.0.head.try_lock() {
                *turnstile = None;
            }
        }
    }
}

/// A permit of a [`Semaphore`].
///
/// Dropping it gives it back at once: the next task of this process gets it, or the server is told. The
/// server hears of it while the runtime runs. [`release`](Permit::release) does the same and returns when it
/// is done.
///
/// It borrows nothing and can be sent to other tasks and threads.
#[must_use = "the permit is given back when it is dropped"]
pub struct Permit {
    guard: Guard,
    slot: u32,
    semaphore: Arc<Shared>,
}

impl Permit {
    /// The number of its slot, from 0 to the number of permits less one. No two permits have the same at a
    /// time: it may stand for one of so many resources.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The key of its slot: see [`Semaphore`](Semaphore#keys).
    #[must_use]
    pub fn key(&self) -> Key {
        self.guard.key()
    }

    /// Whether it is held, as far as this side knows: see [`Guard::is_held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Completes when it is lost, with the reason. Until then it is held.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn lost(&self) -> Error {
        self.about(self.guard.lost().await)
    }

    /// Runs the work for as long as the permit is held: if it is lost first, the work is dropped and the
    /// reason returned.
    ///
    /// # Errors
    ///
    /// As [`Guard::hold`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The permit stays held.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.guard.hold(work).await.map_err(|error| self.about(error))
    }

    /// Takes a fencing token, by which storage can tell this holder from those of the past of the same slot:
    /// see [`Guard::fencing_token`].
    ///
    /// # Errors
    ///
    /// As [`Guard::fencing_token`].
    ///
    /// # Cancel safety
    ///
    /// As [`Guard::fencing_token`].
    pub async fn fencing_token(&self) -> Result<Fence> {
        self.guard.fencing_token().await.map_err(|error| self.about(error))
    }

    /// Gives it back. When this returns, the next one has it, or can have it.
    ///
    /// # Errors
    ///
    /// As [`Guard::unlock`].
    ///
    /// # Cancel safety
    ///
    /// It is given back, also if this future is dropped before that is done.
    pub async fn release(mut self) -> Result<()> {
        let Some(guard) = self.semaphore.hand_over(self.guard.transfer()) else { return Ok(()) };
        let _freed = Freed(&self.semaphore);
        guard.unlock().await.map_err(|error| self.about(error))
    }

    fn about(&self, error: Error) -> Error {
        self.semaphore.about(error.context(format!("permit {}", self.slot)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.guard.is_released() {
            return;
        }
        if let Some(guard) = self.semaphore.hand_over(self.guard.transfer()) {
            let _freed = Freed(&self.semaphore);
            drop(guard);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("semaphore", &self.semaphore.name)
            .field("slot", &self.slot)
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// Tells whoever tries slots, once one was given back.
struct Freed<'a>(&'a Shared);

impl Drop for Freed<'_> {
    fn drop(&mut self) {
        if self.0.queue().waiting > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// A number below this one, which only spreads what many do.
fn random_up_to(end: u32) -> u32 {
    getrandom::u32().unwrap_or_default().checked_rem(end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_what_others_derive_from_the_name() {
        // Key::from_name("hello") is 0xa430d84680aabd0b.
        assert_eq!(class_of("hello"), i32::from_be_bytes([0x24, 0x9a, 0x65, 0x4d]));
        assert_ne!(class_of("hello"), class_of("hello "));
    }
}
