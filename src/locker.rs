//! The lock as a trait, so that code can be tested with a double.

use std::future::Future;

use crate::error::Result;
use crate::lock::Lock;

/// What code that needs a lock asks of it: the methods of [`Lock`] that go-pglock's interface has.
///
/// Write code against it to run its tests without a server.
///
/// # Examples
///
/// ```
/// use pglock::{Locker, Result};
///
/// async fn report(lock: &mut impl Locker) -> Result<&'static str> {
///     if !lock.try_lock().await? {
///         return Ok("somebody else does it");
///     }
///     lock.unlock().await?;
///     Ok("done")
/// }
///
/// /// A lock that somebody else always has.
/// struct Busy;
///
/// impl Locker for Busy {
///     async fn try_lock(&mut self) -> Result<bool> { Ok(false) }
///     async fn try_lock_shared(&mut self) -> Result<bool> { Ok(false) }
///     async fn lock(&mut self) -> Result<()> { std::future::pending().await }
///     async fn lock_shared(&mut self) -> Result<()> { std::future::pending().await }
///     async fn unlock(&mut self) -> Result<()> { Ok(()) }
///     async fn unlock_shared(&mut self) -> Result<()> { Ok(()) }
///     async fn close(self) -> Result<()> { Ok(()) }
/// }
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// assert_eq!(runtime.block_on(report(&mut Busy))?, "somebody else does it");
/// # Ok::<(), pglock::Error>(())
/// ```
pub trait Locker {
    /// See [`Lock::try_lock`].
    fn try_lock(&mut self) -> impl Future<Output = Result<bool>> + Send;
    /// See [`Lock::try_lock_shared`].
    fn try_lock_shared(&mut self) -> impl Future<Output = Result<bool>> + Send;
    /// See [`Lock::lock`].
    fn lock(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// See [`Lock::lock_shared`].
    fn lock_shared(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// See [`Lock::unlock`].
    fn unlock(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// See [`Lock::unlock_shared`].
    fn unlock_shared(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// See [`Lock::close`].
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

impl Locker for Lock {
    async fn try_lock(&mut self) -> Result<bool> {
        Lock::try_lock(self).await
    }

    async fn try_lock_shared(&mut self) -> Result<bool> {
        Lock::try_lock_shared(self).await
    }

    async fn lock(&mut self) -> Result<()> {
        Lock::lock(self).await
    }

    async fn lock_shared(&mut self) -> Result<()> {
        Lock::lock_shared(self).await
    }

    async fn unlock(&mut self) -> Result<()> {
        Lock::unlock(self).await
    }

    async fn unlock_shared(&mut self) -> Result<()> {
        Lock::unlock_shared(self).await
    }

    async fn close(self) -> Result<()> {
        Lock::close(self).await
    }
}
